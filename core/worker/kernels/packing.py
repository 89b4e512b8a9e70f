"""A GPTQ matrix's tensors in the order in which the kernels of cuda/matrices.cu read them; knows no GPU and no kernel.

A tile is 16 outputs; 64 inputs of a tile are 128 words. Which input and output a word's 4 bits stand for is said there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

TILE = 16
BLOCK = 64
# What a word of zeros is where all are 8, which symmetric matrices have: auto-gptq's format stores each less one.
SYMMETRIC_WORDS = {"gptq": 0x77777777, "gptq_v2": 0x88888888 - 2**32}


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A matrix [inputs, outputs] of 4-bit codes.

    codes [tiles, blocks, 32, 4] int32; scales [tiles, groups, 8, 2] half precision, of outputs g and g + 8 of a tile;
    zeros the same, or None where all are 8. `order` [inputs] int32: which input each place takes, None where in order.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    order: torch.Tensor | None

    @property
    def outputs(self) -> int:
        return int(self.codes.shape[0]) * TILE

    @property
    def inputs(self) -> int:
        return int(self.codes.shape[1]) * BLOCK

    @property
    def groups(self) -> int:
        return int(self.scales.shape[1])


def input_order(g_idx: torch.Tensor | None) -> torch.Tensor | None:
    """The inputs sorted by group, or None where they are sorted already."""
    if g_idx is None or bool((g_idx[1:] >= g_idx[:-1]).all()):
        return None
    return torch.argsort(g_idx, stable=True).to(torch.int32)


def unpack(words: torch.Tensor, axis: int) -> torch.Tensor:
    """The eight 4-bit numbers of each int32 of [rows, columns], spread along `axis`, as uint8."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    spread = (words.unsqueeze(axis + 1) >> shifts.view([-1, 1] if axis == 0 else [1, -1])) & 15
    return spread.to(torch.uint8).reshape(
        words.shape[0] * (8 if axis == 0 else 1), words.shape[1] * (8 if axis == 1 else 1)
    )


def pack_codes(codes: torch.Tensor) -> torch.Tensor:
    """[inputs, outputs] codes as [tiles, blocks, 32, 4] words: what `pack` of cuda/matrices.cu does, written out.

    An input is block * 64 + half * 32 + lane % 4 * 8 + word % 2 * 4 + place, an output tile * 16 + side * 8 + lane / 4,
    where the word of a lane is half * 2 + word % 2.
    """
    inputs, outputs = codes.shape
    split = codes.view(inputs // BLOCK, 2, 4, 2, 4, outputs // TILE, 2, 8)
    # block, half, t, word, place, tile, side, g -> tile, block, g, t, half, word, then side and place.
    lanes = split.permute(5, 0, 7, 2, 1, 3, 6, 4).reshape(outputs // TILE, inputs // BLOCK, 32, 4, 2, 4).to(torch.int32)
    words = torch.zeros(lanes.shape[:4], dtype=torch.int32, device=codes.device)
    # Bits 0 to 12 hold place 0 of both sides, then place 2; 16 to 28 places 1 and 3: a register takes a pair of places.
    for shift, (side, place) in zip(
        range(0, 32, 4), ((0, 0), (1, 0), (0, 2), (1, 2), (0, 1), (1, 1), (0, 3), (1, 3)), strict=True
    ):
        words |= lanes[..., side, place] << shift
    return words


def by_tile(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[groups, outputs] as [tiles, groups, 8, 2]."""
    groups, outputs = values.shape
    return values.to(dtype).view(groups, outputs // TILE, 2, 8).permute(1, 0, 3, 2).contiguous()
