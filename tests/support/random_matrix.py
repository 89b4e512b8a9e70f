"""Matrices of random codes, as the kernels of a GPU take them."""

from __future__ import annotations

import torch

from core.worker.kernels.packing import K_BLOCK, TILE, CodeFormat, PackedMatrix


def make_matrix(
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    format: CodeFormat,
    has_permutation: bool,
    random: torch.Generator,
) -> PackedMatrix:
    """Of random codes, on the GPU of `random`; with an order of its own where `has_permutation`."""
    tiles, groups = outputs // TILE, 1 if format.group_size < 0 else inputs // format.group_size
    shape = (tiles, inputs // K_BLOCK, format.pieces, 32, 4)
    codes = torch.randint(-(2**31), 2**31, shape, device=random.device, generator=random).to(torch.int32)
    scales = (torch.rand((tiles, groups, 8, 2), device=random.device, generator=random) + 0.5) / 100
    zeros = torch.randint(0, 2**format.bits, (tiles, groups, 8, 2), device=random.device, generator=random).to(dtype)
    permutation = torch.randperm(inputs, device=random.device, generator=random).to(torch.int32)
    return PackedMatrix(
        codes, scales.to(dtype), zeros if format.has_zeros else None, permutation if has_permutation else None
    )
