"""The layout in which the kernels of cuda/matrices.cu and cuda/prompts.cu read a GPTQ matrix.

A tile is 16 outputs. 64 inputs of a tile (a K block) come in pieces of 512 bytes, 32 lanes of a warp × 4 words, which a
warp reads in one instruction: one piece at 4 bit, two at 8. At 4 bit each word is a lane's A operand of one m16n8k16
product:

                 word 0        word 1        word 2        word 3          one word, bits 31..0
               +-------------+-------------+-------------+-------------+
  lane 4g + t  | k 8t..8t+3  | 8t+4..8t+7  | 32+8t..+3   | 32+8t+4..+7 |   outputs  g+8 g g+8 g | g+8 g g+8 g
               +-------------+-------------+-------------+-------------+   k + ...   3  3  1  1 |  2  2  0  0

At 8 bit two words are one, and a piece has 32 inputs:

               +-------------+-------------+-------------+-------------+
  lane 4g + t  | k 8t, 8t+1  | 8t+2, 8t+3  | 8t+4, 8t+5  | 8t+6, 8t+7  |   outputs  g+8 g | g+8 g
               +-------------+-------------+-------------+-------------+   k + ...   1  1 |  0  0

g = 0..7 is the row of A, t = 0..3 its column pair; outputs are those of the tile, k counts the piece's inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

TILE = 16
K_BLOCK = 64


@dataclass(frozen=True, slots=True)
class CodeFormat:
    """How matrices are quantized, as far as kernels are compiled for it: 4 or 8 `bits`; `group_size` inputs share a
    scale (-1: all of a column); `has_zeros`: zero points are stored, else all are 2 ** (bits - 1)."""

    bits: int
    group_size: int
    has_zeros: bool

    @property
    def pieces(self) -> int:
        """Pieces of 512 bytes that 64 inputs of a tile are."""
        return self.bits // 4

    @property
    def group_size_32(self) -> int:
        """How many times 32 inputs share a scale; 0: all inputs do."""
        return 0 if self.group_size < 0 else self.group_size // 32

    @property
    def scales_per_block(self) -> int:
        """How many scales 64 inputs of an output have."""
        return 2 if self.group_size == 32 else 1

    @property
    def stage_blocks(self) -> int:
        """How many K blocks a warp of the small-batch products loads at once: a scale group of 4 bit, or one."""
        return max(1, self.group_size_32 // 2) if self.bits == 4 else 1

    @property
    def inputs_per_group(self) -> int:
        """How many inputs' products the small-batch kernels add before they scale the sum: a scale group's, as far as
        they are loaded at once."""
        return self.stage_blocks * K_BLOCK // self.scales_per_block


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A matrix [inputs, outputs] of codes of 4 or 8 bit.

    codes: int32 [tiles, K blocks, bits / 4, 32, 4]. scales: half precision [tiles, groups, 8, 2], of outputs g and
    g + 8. zeros: like scales, or None where all are in the middle. permutation: int32 [inputs], the model's input at
    each position of the matrix; None where in order.
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


def unpack(words: torch.Tensor, axis: int, bits: int) -> torch.Tensor:
    """The numbers of 4 or 8 `bits` in each int32 of [rows, columns], spread along `axis`, as uint8."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    spread = (words.unsqueeze(axis + 1) >> shifts.view([-1, 1] if axis == 0 else [1, -1])) & (2**bits - 1)
    sizes = [size * (len(shifts) if axis == side else 1) for side, size in enumerate(words.shape)]
    return spread.to(torch.uint8).reshape(sizes)


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """[inputs, outputs] codes as [tiles, K blocks, bits / 4, 32, 4] words: the reference for `pack` of
    cuda/matrices.cu.

    An input is block * 64 + half * 32 + t * 8 + word * places + place, an output tile * 16 + side * 8 + g.
    """
    inputs, outputs = codes.shape
    tiles, blocks, places = outputs // TILE, inputs // K_BLOCK, 16 // bits
    split = codes.to(torch.int32).view(blocks, 2, 4, 8 // places, places, tiles, 2, 8)
    # block, half, t, word, place, tile, side, g -> tile, block, half, g, t, word, then side and place.
    lanes = split.permute(5, 0, 1, 7, 2, 3, 6, 4)
    words = torch.zeros(lanes.shape[:6], dtype=torch.int32, device=codes.device)
    # Bits 0 to 15 hold the even places of both sides, bits 16 to 31 the odd ones: a mask gives a register its pair.
    for side in range(2):
        for place in range(places):
            words |= lanes[..., side, place] << (side * bits + place // 2 * 8 + place % 2 * 16)
    words = words.view(tiles, blocks, 2, 32, bits // 2)
    # At 4 bit both halves are one piece, a lane's two words of each side by side.
    return words if bits == 8 else words.transpose(2, 3).reshape(tiles, blocks, 1, 32, 4)


def tile_scales(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[groups, outputs] as [tiles, groups, 8, 2]: outputs g and g + 8 of a tile lie side by side."""
    groups, outputs = values.shape
    return values.to(dtype).view(groups, outputs // TILE, 2, 8).permute(1, 0, 3, 2).contiguous()
