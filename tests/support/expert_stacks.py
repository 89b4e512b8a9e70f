"""Experts of known codes, packed, and as float32 matrices."""

from __future__ import annotations

from typing import NamedTuple

import torch

from core.worker.kernels.expert_kernels import StackedMatrix
from core.worker.kernels.packing import CodeFormat, invert_permutation, pack_codes, tile_scales


class MadeStack(NamedTuple):
    """A stack, and its matrices dequantized in the order of the model's inputs, float32 [experts, inputs, outputs]."""

    matrix: StackedMatrix
    dense: torch.Tensor


def make_stack(
    num_experts: int, inputs: int, outputs: int, format: CodeFormat, dtype: torch.dtype, permuted: bool, seed: int
) -> MadeStack:
    random = torch.Generator().manual_seed(seed)
    group_size = inputs if format.group_size < 0 else format.group_size
    made, dense = [], []
    for _ in range(num_experts):
        codes = torch.randint(0, 2**format.bits, (inputs, outputs), generator=random)
        zeros = torch.full((inputs // group_size, outputs), 2 ** (format.bits - 1))
        if format.has_zeros:
            zeros = torch.randint(0, 2**format.bits, zeros.shape, generator=random)
        scales = ((torch.rand(zeros.shape, generator=random) + 0.5) / 2**format.bits / inputs**0.5 * 4).to(dtype)
        order = torch.randperm(inputs, generator=random).int() if permuted else torch.arange(inputs).int()
        whole = (codes - zeros.repeat_interleave(group_size, 0)) * scales.float().repeat_interleave(group_size, 0)
        made.append((pack_codes(codes, format.bits), tile_scales(scales, dtype), tile_scales(zeros, dtype), order))
        dense.append(whole[invert_permutation(order).long()])
    codes, scales, zeros, orders = (torch.stack(parts) for parts in zip(*made, strict=True))
    matrix = StackedMatrix(codes, scales, zeros if format.has_zeros else None, orders if permuted else None)
    return MadeStack(matrix, torch.stack(dense))
