"""Samples each row's next token from its logits, by the kernel of cuda/draw.cu.

A cluster of blocks holds a row in registers, where the GPU has clusters; elsewhere one block reads it several times.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import NamedTuple

import torch

from core.worker.kernels.nvrtc import CudaCodeError, CudaModule, read_source

log = logging.getLogger(__name__)
# Top-p threshold: bisect [max - LOGIT_RANGE, max] BISECTIONS times. Tokens below weigh less than e^-40 of the likeliest
# and are ignored.
LOGIT_RANGE = 40.0
BISECTIONS = 27
# A cluster of so many blocks samples a row, each with so many threads; without clusters one block does.
SAMPLE_BLOCKS, SAMPLE_THREADS = 8, 512
SINGLE_BLOCK_THREADS = 1024
# The most logits that a thread's registers hold.
MAX_SCORES = 64
# The columns of SlotSamplingState.settings: those of Sampling, then whether the slot has offsets and a mask.
SETTINGS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
# With these nothing is cut or changed.
NEUTRAL = (1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
# Bits of SlotSamplingState.seen: a repetition penalty applies to the token; the answer has it.
SEEN, SAID = 1, 2


class SlotSamplingState(NamedTuple):
    """What sampling reads and writes, by slot, with one slot more for padding rows.

    settings: float32 [slots + 1, 9]. seeds, tokens (the last one), positions: int64 [slots + 1].
    seen: uint8 [slots + 1, vocabulary], SEEN and SAID of each token.
    offsets: float32 [slots + 1, vocabulary], see decode/logit_offsets.py; a drawn token's penalties are taken off.
    masks: int32 [slots + 1, ceil(vocabulary / 32)], one bit a token, the lowest first: what may come. A slot
    that has one is drawn by a launch of its own, once the mask is there.
    """

    settings: torch.Tensor
    seeds: torch.Tensor
    seen: torch.Tensor
    tokens: torch.Tensor
    positions: torch.Tensor
    offsets: torch.Tensor
    masks: torch.Tensor


def make_slot_state(num_slots: int, vocabulary: int, device: torch.device) -> SlotSamplingState:
    """The state of slots that no request was given yet."""
    many = num_slots + 1
    return SlotSamplingState(
        settings=neutral_settings(many, device),
        seeds=torch.zeros(many, dtype=torch.long, device=device),
        seen=torch.zeros((many, vocabulary), dtype=torch.uint8, device=device),
        tokens=torch.zeros(many, dtype=torch.long, device=device),
        positions=torch.zeros(many, dtype=torch.long, device=device),
        offsets=torch.zeros((many, vocabulary), dtype=torch.float32, device=device),
        masks=torch.full((many, mask_words(vocabulary)), -1, dtype=torch.int32, device=device),
    )


def mask_words(vocabulary: int) -> int:
    return -(-vocabulary // 32)


def neutral_settings(many: int, device: torch.device) -> torch.Tensor:
    return torch.tensor([*NEUTRAL, 0.0, 0.0], device=device).repeat(many, 1)


def settings_row(sampling: object, has_offsets: bool = False, has_mask: bool = False) -> torch.Tensor:
    """float32 [9], one row of SlotSamplingState.settings. sampling: has an attribute for each of SETTINGS."""
    values = [float(getattr(sampling, name)) for name in SETTINGS]
    return torch.tensor([*values, float(has_offsets), float(has_mask)])


class SamplingKernel:
    """For logits of one dtype and vocabulary on one GPU. clusters: whether a cluster of blocks samples a row, which
    takes compute capability 9.0 and at most MAX_SCORES logits a thread. Raises CudaCodeError."""

    def __init__(self, dtype: torch.dtype, vocabulary: int, device: torch.device, clusters: bool) -> None:
        self._blocks, self._threads = (SAMPLE_BLOCKS, SAMPLE_THREADS) if clusters else (1, SINGLE_BLOCK_THREADS)
        defines: dict[str, str | int] = {
            "BF16": int(dtype == torch.bfloat16),
            "CLUSTERS": int(clusters),
            "SCORES": -(-vocabulary // (self._blocks * self._threads)),
            "SAMPLE_BLOCKS": self._blocks,
            "SAMPLE_THREADS": self._threads,
            "RANGE": f"{LOGIT_RANGE}f",
            "BISECTIONS": BISECTIONS,
            "SETTINGS": len(SETTINGS) + 2,
        }
        module = CudaModule(read_source(*(("hopper.cuh",) if clusters else ()), "draw.cu"), defines, device)
        self._sample = module.kernel("sample")

    def __call__(
        self,
        logits: torch.Tensor,
        scratch: torch.Tensor,
        rows: torch.Tensor,
        slots: SlotSamplingState,
        positions: torch.Tensor,
        sampled: torch.Tensor,
        is_kept: bool = True,
        is_late: bool = False,
    ) -> None:
        """Sample the next token of every row whose slot has no mask, as decode/sampling.py does, and store it as its
        slot's if `is_kept`; or, where `is_late`, of every row whose slot has one.

        logits [rows, vocabulary]; scratch the same in float32; rows [rows]: each row's slot; positions [rows]: that of
        the token, which becomes the slot's, though it is left out. sampled [rows] gets the tokens, -1 where a logit is
        NaN. Random numbers are Philox by seed and position, so they do not depend on the batch.
        """
        self._sample((self._blocks, logits.shape[0], 1), self._threads, logits, scratch, rows, *slots, positions,
                     sampled, logits.shape[1], slots.seeds.shape[0] - 1, int(is_kept), int(is_late))  # fmt: skip


@cache
def sampling_kernel_for(dtype: torch.dtype, vocabulary: int, device: torch.device) -> SamplingKernel:
    """The kernel for such logits. Raises TypeError for other types than float16 and bfloat16, CudaCodeError where it
    does not compile."""
    if dtype not in (torch.float16, torch.bfloat16):
        raise TypeError(f"logits in {dtype}")
    if vocabulary <= MAX_SCORES * SAMPLE_BLOCKS * SAMPLE_THREADS and torch.cuda.get_device_capability(device) >= (9, 0):
        try:
            return SamplingKernel(dtype, vocabulary, device, clusters=True)
        except CudaCodeError as error:
            log.warning("tokens are sampled the slower way: %s", error)
    return SamplingKernel(dtype, vocabulary, device, clusters=False)
