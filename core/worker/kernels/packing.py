"""The layout in which the kernels of cuda/matrices.cu and cuda/prompts.cu read a GPTQ matrix.

A tile is 16 outputs. 64 inputs of a tile (a K block) are 512 bytes: 32 lanes of a warp × 4 words × 8 codes. A warp
reads them in one instruction, and each word is a lane's A operand of one m16n8k16 product:

                 word 0        word 1        word 2        word 3          one word, bits 31..0
               +-------------+-------------+-------------+-------------+
  lane 4g + t  | k 8t..8t+3  | 8t+4..8t+7  | 32+8t..+3   | 32+8t+4..+7 |   outputs  g+8 g g+8 g | g+8 g g+8 g
               +-------------+-------------+-------------+-------------+   k + ...   3  3  1  1 |  2  2  0  0

g = 0..7 is the row of A, t = 0..3 its column pair; outputs are those of the tile, k counts the block's inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

TILE = 16
K_BLOCK = 64
# A word of zero points where all are 8, as in symmetric matrices. Format gptq stores each less one.
SYMMETRIC_WORDS = {"gptq": 0x77777777, "gptq_v2": 0x88888888 - 2**32}


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A matrix [inputs, outputs] of 4-bit codes.

    codes: int32 [tiles, K blocks, 32, 4]. scales: half precision [tiles, groups, 8, 2], of outputs g and g + 8.
    zeros: like scales, or None where all are 8. permutation: int32 [inputs], the model's input at each position of the
    matrix; None where in order.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    permutation: torch.Tensor | None

    @property
    def outputs(self) -> int:
        return int(self.codes.shape[0]) * TILE

    @property
    def inputs(self) -> int:
        return int(self.codes.shape[1]) * K_BLOCK

    @property
    def groups(self) -> int:
        return int(self.scales.shape[1])


def find_permutation(g_idx: torch.Tensor | None) -> torch.Tensor | None:
    """The inputs sorted by scale group, int32 [inputs]; None where they are sorted already."""
    if g_idx is None or bool((g_idx[1:] >= g_idx[:-1]).all()):
        return None
    return torch.argsort(g_idx, stable=True).to(torch.int32)


def invert_permutation(permutation: torch.Tensor) -> torch.Tensor:
    """The position at which the matrix wants each of the model's inputs, [inputs]."""
    inverse = torch.empty_like(permutation)
    inverse[permutation.long()] = torch.arange(permutation.numel(), dtype=permutation.dtype, device=permutation.device)
    return inverse


def unpack(words: torch.Tensor, axis: int) -> torch.Tensor:
    """The eight 4-bit numbers of each int32 of [rows, columns], spread along `axis`, as uint8."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    spread = (words.unsqueeze(axis + 1) >> shifts.view([-1, 1] if axis == 0 else [1, -1])) & 15
    return spread.to(torch.uint8).reshape(
        words.shape[0] * (8 if axis == 0 else 1), words.shape[1] * (8 if axis == 1 else 1)
    )


def zero_points(words: torch.Tensor, packing: str) -> torch.Tensor:
    """The 4-bit zero points [groups, outputs], uint8, that int32 words [groups, outputs / 8] stand for.

    "gptq" stores each less one. gptqmodel subtracts from a whole word, where a zero point of 0 borrows from the next;
    adding to the whole word gives it back. gptqmodel's own kernels read them so too.
    """
    return unpack(words + 0x11111111 if packing == "gptq" else words, 1)


def pack_codes(codes: torch.Tensor) -> torch.Tensor:
    """[inputs, outputs] codes as [tiles, K blocks, 32, 4] words: the reference for `pack` of cuda/matrices.cu.

    An input is block * 64 + half * 32 + t * 8 + word % 2 * 4 + place, an output tile * 16 + side * 8 + g.
    """
    inputs, outputs = codes.shape
    split = codes.view(inputs // K_BLOCK, 2, 4, 2, 4, outputs // TILE, 2, 8)
    # block, half, t, word, place, tile, side, g -> tile, block, g, t, half, word, then side and place.
    lanes = (
        split.permute(5, 0, 7, 2, 1, 3, 6, 4).reshape(outputs // TILE, inputs // K_BLOCK, 32, 4, 2, 4).to(torch.int32)
    )
    words = torch.zeros(lanes.shape[:4], dtype=torch.int32, device=codes.device)
    # Bits 0 to 15 hold places 0 and 2 of both sides, bits 16 to 31 places 1 and 3: a mask gives a register its pair.
    for shift, (side, place) in zip(
        range(0, 32, 4), ((0, 0), (1, 0), (0, 2), (1, 2), (0, 1), (1, 1), (0, 3), (1, 3)), strict=True
    ):
        words |= lanes[..., side, place] << shift
    return words


def tile_scales(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[groups, outputs] as [tiles, groups, 8, 2]: outputs g and g + 8 of a tile lie side by side."""
    groups, outputs = values.shape
    return values.to(dtype).view(groups, outputs // TILE, 2, 8).permute(1, 0, 3, 2).contiguous()
