"""On a GPU: a cluster of blocks samples what one block does. Run with `pytest -m gpu` on a GPU host."""

from __future__ import annotations

import pytest
import torch

from core.engine.sampling_params import Sampling
from core.worker.kernels.sampling_kernel import (
    SamplingKernel,
    SlotSamplingState,
    make_slot_state,
    settings_row,
)
from tests.support.compile_ahead import COMPARED_VOCABULARIES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
has_clusters = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
SLOTS, DRAWS = 5, 40
SAMPLINGS = (
    Sampling(temperature=0.0),
    Sampling(temperature=0.0, repetition_penalty=1.3),
    Sampling(temperature=1.0, top_p=1.0),
    Sampling(temperature=0.7, top_p=0.9),
    Sampling(temperature=1.0, top_p=1.0, top_k=7),
    Sampling(temperature=1.3, top_p=0.9, top_k=40, min_p=0.05, repetition_penalty=1.3),
)


def make_slots(vocabulary: int) -> SlotSamplingState:
    generator = torch.Generator("cuda").manual_seed(vocabulary)
    samplings = [SAMPLINGS[slot % len(SAMPLINGS)] for slot in range(SLOTS)] + [SAMPLINGS[3]]
    state = make_slot_state(SLOTS, vocabulary, torch.device("cuda", 0))
    # Every second slot has offsets, every third a mask.
    rows = [settings_row(one, slot % 2 == 1, slot % 3 == 0) for slot, one in enumerate(samplings)]
    state.settings.copy_(torch.stack(rows))
    state.seeds.copy_(torch.randint(-(2**62), 2**62, (SLOTS + 1,), device="cuda", generator=generator))
    state.seen.copy_(torch.rand((SLOTS + 1, vocabulary), device="cuda", generator=generator) < 0.1)
    state.offsets.copy_(torch.randn(state.offsets.shape, device="cuda", generator=generator))
    state.masks.copy_(torch.randint(-(2**31), 2**31, state.masks.shape, device="cuda", generator=generator))
    state.positions.copy_(torch.arange(SLOTS + 1, device="cuda"))
    return state


@pytest.mark.skipif(not has_clusters, reason="this GPU has no clusters of blocks")
@pytest.mark.parametrize(("dtype", "vocabulary"), COMPARED_VOCABULARIES)
def test_both_kernels_sample_the_same_tokens(vocabulary: int, dtype: torch.dtype) -> None:
    cluster, block = (
        SamplingKernel(dtype, vocabulary, torch.device("cuda", 0), clusters) for clusters in (True, False)
    )
    one, other = make_slots(vocabulary), make_slots(vocabulary)
    for sampling in SAMPLINGS:
        one.settings[1] = other.settings[1] = settings_row(sampling, True).cuda()
        num_same = 0
        for draw in range(DRAWS):
            generator = torch.Generator("cuda").manual_seed(draw)
            rows = torch.tensor([1, 3, 4, SLOTS], device="cuda")
            logits = (torch.randn((len(rows), vocabulary), device="cuda", generator=generator) * 3).to(dtype)
            got, wanted = torch.zeros((2, len(rows)), dtype=torch.long, device="cuda")
            places = torch.full((len(rows),), draw + 1, dtype=torch.long, device="cuda")
            scratch = torch.empty_like(logits, dtype=torch.float32)
            for is_late in (False, True):
                cluster(logits, scratch, rows, one, places, got, is_late=is_late)
                block(logits, scratch, rows, other, places, wanted, is_late=is_late)
            num_same += int((got == wanted).sum())
            assert torch.equal(one.tokens[rows[:-1]], got[:-1])
            assert torch.equal(one.positions, other.positions)
            other.seen.copy_(one.seen)
            other.offsets.copy_(one.offsets)
        # Where top-p's threshold falls between two sums' roundings, one more score may be in.
        assert num_same >= 4 * DRAWS - 3


@pytest.mark.parametrize("clusters", [False, *([True] * has_clusters)])
def test_logits_that_are_nan_give_no_token(clusters: bool) -> None:
    kernel = SamplingKernel(torch.float16, 32000, torch.device("cuda", 0), clusters)
    slots = make_slots(32000)
    slots.settings[:] = settings_row(SAMPLINGS[0]).cuda()
    logits = torch.randn((2, 32000), device="cuda").half()
    logits[1, 31999] = float("nan")
    sampled = torch.zeros(2, dtype=torch.long, device="cuda")
    rows, places = torch.tensor([0, 2], device="cuda"), torch.ones(2, dtype=torch.long, device="cuda")
    kernel(logits, torch.empty_like(logits, dtype=torch.float32), rows, slots, places, sampled)
    assert sampled[1] == -1
    assert sampled[0] == logits[0].argmax()
