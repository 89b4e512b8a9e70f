"""Products of many rows with a matrix of ATen's int4 CPU kernel: dequantized part by part, multiplied as bfloat16.

The int4 kernel's time grows with every row from the fourth on. A CPU that multiplies bfloat16 itself (AMX, AVX-512
BF16) prefills several times as fast from dequantized weights, a part of which stays in its cache. The weights are
rounded to bfloat16, as GPU kernels round them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

# A CPU without any of these multiplies bfloat16 more slowly than int4.
CAPABILITIES = ("amx_bf16", "avx512_bf16")
# From so many rows on dequantizing pays: with 64 rows it is 1.3 times as fast, with 256 four times.
MIN_ROWS = 48
# Outputs of a tile of ATen's packing on a CPU with AVX-512, and the middle of the codes.
TILE, HALF_TILE, MIDDLE = 64, 32, 8
PART_BYTES = 4 * 1024 * 1024
BFLOAT16_BYTES = 2

Multiply = Callable[[torch.Tensor], torch.Tensor]


def make_prefill_matmul(weight: torch.Tensor, scales_and_zeros: torch.Tensor, group_size: int) -> Multiply | None:
    """The product for at least MIN_ROWS rows, [rows, in] -> [rows, out], both bfloat16; None where it is not faster.

    weight: from `_convert_weight_to_int4pack_for_cpu`, uint8 [out, in / 2]. scales_and_zeros: bfloat16
    [in / group size, out, 2].
    """
    if weight.shape[0] % TILE or not is_supported():
        return None
    tiles = _tiles(weight)
    has_zeros = bool(scales_and_zeros[..., 1].any())
    num_tiles, num_inputs, _ = tiles.shape
    step = max(1, PART_BYTES // (num_inputs * TILE * BFLOAT16_BYTES))

    def multiply(rows: torch.Tensor) -> torch.Tensor:
        out = rows.new_empty((rows.shape[0], num_tiles * TILE))
        for first in range(0, num_tiles, step):
            columns = slice(first * TILE, (first + step) * TILE)
            scales = scales_and_zeros[:, None, columns, 0].contiguous()
            dequantized = _dequantize(tiles[first : first + step]).view(scales.shape[0], group_size, -1)
            if has_zeros:
                dequantized = torch.addcmul(scales_and_zeros[:, None, columns, 1], dequantized, scales)
            else:
                dequantized *= scales
            out[:, columns] = rows @ dequantized.view(num_inputs, -1)
        return out

    return multiply


def has_matrix_units(capabilities: Mapping[str, Any]) -> bool:
    """Whether a CPU of these `capabilities`, as torch names them, multiplies bfloat16 itself."""
    return any(capabilities.get(name, False) for name in CAPABILITIES)


@cache
def multiplies_bfloat16() -> bool:
    """Whether this machine's CPU does. An older torch, which the machine may bring, does not tell."""
    return has_matrix_units(getattr(torch.cpu, "get_capabilities", dict)())


@cache
def is_supported() -> bool:
    """Whether this CPU is faster so, and ATen packs codes here as `_dequantize` expects."""
    if not multiplies_bfloat16():
        return False
    codes = torch.randint(16, (2 * TILE, TILE), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    packed: torch.Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2)
    dequantized = _dequantize(_tiles(packed.view(torch.uint8)))
    is_same: bool = torch.equal(dequantized.view(TILE, 2 * TILE), (codes - MIDDLE).t().bfloat16())
    return is_same


def _tiles(packed: torch.Tensor) -> torch.Tensor:
    """[tiles, in, HALF_TILE] bytes: a tile's first 32 outputs in the low four bits, the others in the high four."""
    return packed.view(-1, packed.shape[1] * 2, HALF_TILE)


def _dequantize(tiles: torch.Tensor) -> torch.Tensor:
    """The codes less 8, bfloat16 [in, tiles, TILE]."""
    num_tiles, num_inputs, _ = tiles.shape
    dequantized = torch.empty((num_inputs, num_tiles, TILE), dtype=torch.bfloat16)
    by_tile = dequantized.transpose(0, 1)
    by_tile[..., :HALF_TILE] = (tiles & 15).view(torch.int8).sub_(MIDDLE)
    by_tile[..., HALF_TILE:] = (tiles >> 4).view(torch.int8).sub_(MIDDLE)
    return dequantized
