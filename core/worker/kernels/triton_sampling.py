"""Samples every row's next token in Triton, for GPUs and vocabularies that cuda/draw.cu does not take."""

# mypy: disable-error-code="no-untyped-def, attr-defined, import-not-found, no-any-return"
# Triton reads a kernel's arguments by what they are called with; annotations other than its own confuse it.
from __future__ import annotations

import torch
import triton
import triton.language as tl

from core.worker.kernels.sampling_kernel import BISECTIONS, LOGIT_RANGE, SlotSamplingState

SAMPLE_BLOCK = 8192


@triton.jit
def _count(scores, size, threshold, BLOCK: tl.constexpr):
    """How many scores are at least `threshold`."""
    found = tl.zeros([BLOCK], tl.int32)
    for at in range(0, size, BLOCK):
        places = at + tl.arange(0, BLOCK)
        found += (tl.load(scores + places, mask=places < size, other=float("-inf")) >= threshold).to(tl.int32)
    return tl.sum(found, 0)


@triton.jit
def _mass(scores, size, threshold, top, BLOCK: tl.constexpr):
    """The sum of e^(score - top) over scores that are at least `threshold`."""
    found = tl.zeros([BLOCK], tl.float32)
    for at in range(0, size, BLOCK):
        places = at + tl.arange(0, BLOCK)
        score = tl.load(scores + places, mask=places < size, other=float("-inf"))
        found += tl.where(score >= threshold, tl.exp(score - top), 0.0)
    return tl.sum(found, 0)


@triton.jit
def _sample(logits, scratch, rows, settings, seeds, seen, tokens, positions, step, sampled, size, num_slots,
            STEPS: tl.constexpr, RANGE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(rows + row).to(tl.int64)
    temperature, top_p = tl.load(settings + slot * 5), tl.load(settings + slot * 5 + 1)
    top_k, min_p = tl.load(settings + slot * 5 + 2), tl.load(settings + slot * 5 + 3)
    penalty = tl.load(settings + slot * 5 + 4)
    position = tl.load(positions + slot) + tl.load(step)
    is_greedy = temperature < 1e-5
    divisor = tl.where(is_greedy, 1.0, temperature)
    scores = scratch + row * size
    tops, broken = tl.full([BLOCK], float("-inf"), tl.float32), tl.zeros([BLOCK], tl.int32)
    for at in range(0, size, BLOCK):
        places = at + tl.arange(0, BLOCK)
        score = tl.load(logits + row * size + places, mask=places < size, other=float("-inf")).to(tl.float32)
        is_seen = tl.load(seen + slot * size + places, mask=places < size, other=0) > 0
        score = tl.where(is_seen, tl.where(score > 0, score / penalty, score * penalty), score) / divisor
        broken = broken | (score != score).to(tl.int32)
        tops = tl.maximum(tops, score)
        tl.store(scores + places, score, mask=places < size)
    tl.debug_barrier()
    top, is_broken = tl.max(tops, 0), tl.max(broken, 0) > 0
    threshold = float("-inf")
    if is_greedy:
        threshold = top
    else:
        if (top_k > 0) & (top_k < size):
            low, high = top - 4 * RANGE, top
            for _ in range(STEPS):
                middle = (low + high) / 2
                enough = _count(scores, size, middle, BLOCK) >= top_k
                low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
            threshold = low
        if top_p < 1:
            wanted = top_p * _mass(scores, size, threshold, top, BLOCK)
            low, high = tl.maximum(threshold, top - RANGE), top
            for _ in range(STEPS):
                middle = (low + high) / 2
                enough = _mass(scores, size, middle, top, BLOCK) >= wanted
                low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
            threshold = low
        if min_p > 0:
            threshold = tl.minimum(tl.maximum(threshold, top + tl.log(min_p)), top)
    key = tl.load(seeds + slot) + position.to(tl.int64) * 0x1E3779B97F4A7C15
    bests, spots = tl.full([BLOCK], float("-inf"), tl.float32), tl.zeros([BLOCK], tl.int32)
    for at in range(0, size, BLOCK):
        places = at + tl.arange(0, BLOCK)
        score = tl.load(scores + places, mask=places < size, other=float("-inf"))
        score = tl.where(score >= threshold, score, float("-inf"))
        if not is_greedy:
            score += -tl.log(-tl.log(tl.maximum(tl.rand(key, places), 1e-10)))
        spots = tl.where(score > bests, places, spots)
        bests = tl.maximum(bests, score)
    # Of equals the first.
    token = tl.min(tl.where(bests == tl.max(bests, 0), spots, size - 1), 0)
    if slot < num_slots:
        tl.store(seen + slot * size + token, 1)
        tl.store(tokens + slot, token.to(tl.int64))
        tl.store(positions + slot, position)
    tl.store(sampled + row, tl.where(is_broken, -1, token).to(tl.int64))


def sample_all(
    logits: torch.Tensor,
    scratch: torch.Tensor,
    rows: torch.Tensor,
    slots: SlotSamplingState,
    step: torch.Tensor,
    sampled: torch.Tensor,
) -> None:
    """Sample the next token of every row, as decode/sampling.py does, and store it as its slot's.

    logits [rows, vocabulary]; scratch the same in float32; rows [rows]: each row's slot. The slots' positions grow by
    `step` [1]. sampled [rows] gets the tokens, -1 where a logit is NaN. Random numbers are Philox by seed and position,
    so they do not depend on the batch.
    """
    size = logits.shape[1]
    block = min(SAMPLE_BLOCK, triton.next_power_of_2(size))
    _sample[(logits.shape[0],)](
        logits, scratch, rows, *slots, step, sampled, size, slots.seeds.shape[0] - 1,
        STEPS=BISECTIONS, RANGE=LOGIT_RANGE, BLOCK=block, num_warps=16)  # fmt: skip
