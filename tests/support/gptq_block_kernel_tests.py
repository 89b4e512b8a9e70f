"""Tests of the kernel that rounds a block of a matrix, against torch on the default device: for a CPU and a GPU."""

from __future__ import annotations

import pytest
import torch

from core.worker.kernels.gptq_block import gptq_block_kernel_for

INPUTS, ROWS = 128, 21


def round_by_torch(
    weights: torch.Tensor, inverse: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, groups: torch.Tensor,
    highest: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """An input at a time, as GPTQ's authors do (arXiv 2210.17323, step 4 of algorithm 1): rounded, errors, losses."""
    weights = weights.clone()
    rounded, errors, losses = (torch.zeros_like(weights) for _ in range(3))
    for input in range(INPUTS):
        scale, zero = scales[groups[input]], zeros[groups[input]]
        code = torch.clamp(torch.round(weights[:, input] / scale) + zero, 0, highest)
        rounded[:, input] = scale * (code - zero)
        miss = weights[:, input] - rounded[:, input]
        losses[:, input] = miss.square() / inverse[input, input].square()
        errors[:, input] = miss / inverse[input, input]
        weights[:, input:] -= errors[:, input].unsqueeze(1) * inverse[input, input:]
    return rounded, errors, losses


@pytest.mark.parametrize(("highest", "group_size"), [(15, 128), (15, 32), (255, 64)])
def test_a_block_is_rounded_to_torchs_bits(highest: int, group_size: int) -> None:
    """From a part of a wider matrix and of a wider inverse, with outputs that lie in wider ones too."""
    torch.manual_seed(highest + group_size)
    wide = torch.randn(ROWS, 2 * INPUTS)
    inverse = torch.linalg.cholesky(torch.cov(torch.randn(2 * INPUTS, 1000)), upper=True)
    num_groups = INPUTS // group_size
    scales = torch.rand(num_groups, ROWS) * 4 / highest + 0.01
    zeros = torch.randint(0, highest + 1, (num_groups, ROWS)).float()
    groups = torch.arange(INPUTS, dtype=torch.int32) // group_size
    weights, part = wide[:, INPUTS:], inverse[INPUTS:, INPUTS:]
    found = [torch.full((ROWS, 3 * INPUTS), 7.0) for _ in range(3)]
    slices = [one[:, INPUTS : 2 * INPUTS] for one in found]
    kernel = gptq_block_kernel_for(wide.device)
    kernel(weights, part, scales, zeros, groups, slices[0], slices[1], slices[2], highest)
    for got, wanted in zip(slices, round_by_torch(weights, part, scales, zeros, groups, highest), strict=True):
        assert torch.equal(got, wanted)
    assert all(bool((one[:, :INPUTS] == 7).all() and (one[:, 2 * INPUTS :] == 7).all()) for one in found)


def test_what_is_no_number_stays_none() -> None:
    weights = torch.zeros(2, INPUTS)
    weights[1, 5] = torch.nan
    rounded, errors, losses = (torch.zeros_like(weights) for _ in range(3))
    ones, groups = torch.ones(1, 2), torch.zeros(INPUTS, dtype=torch.int32)
    gptq_block_kernel_for(weights.device)(weights, torch.eye(INPUTS), ones, ones, groups, rounded, errors, losses, 15)
    assert losses[1, 5].isnan() and not losses[0].isnan().any()
