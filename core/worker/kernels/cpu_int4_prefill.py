"""A matrix of ATen's int4 CPU kernel for many rows at once: written out piece by piece, multiplied as bfloat16.

The int4 kernel takes as long for each further row as for the fourth. A CPU that multiplies bfloat16 itself (AMX,
AVX-512 BF16) reads a prompt several times as fast from weights that are written out, and a piece of those stays in its
cache. The weights are rounded to bfloat16 then, as GPU kernels round them. Knows no checkpoint and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

# Of these a CPU needs one, or bfloat16 costs it more than the int4 kernel.
CAPABILITIES = ("amx_bf16", "avx512_bf16")
# From here on writing a matrix out is won back; with 64 rows it is 1.3 times as fast, with 256 four times.
MIN_ROWS = 48
# How wide a tile of ATen's packing is on a CPU with AVX-512, and the middle of the codes.
TILE, HALF_TILE, MIDDLE = 64, 32, 8
PIECE_BYTES = 4 * 1024 * 1024
BFLOAT16_BYTES = 2

Multiply = Callable[[torch.Tensor], torch.Tensor]


def make_prefill_matmul(weight: torch.Tensor, scales_and_zeros: torch.Tensor, group_size: int) -> Multiply | None:
    """The product for at least MIN_ROWS rows, [rows, in] -> [rows, out], both bfloat16; None where it gains nothing.

    `weight` is what `_convert_weight_to_int4pack_for_cpu` gave, uint8 [out, in / 2]; `scales_and_zeros` is bfloat16
    [in / group size, out, 2].
    """
    if weight.shape[0] % TILE or not is_supported():
        return None
    tiles = _tiles(weight)
    has_zeros = bool(scales_and_zeros[..., 1].any())
    num_tiles, num_inputs, _ = tiles.shape
    step = max(1, PIECE_BYTES // (num_inputs * TILE * BFLOAT16_BYTES))

    def multiply(rows: torch.Tensor) -> torch.Tensor:
        out = rows.new_empty((rows.shape[0], num_tiles * TILE))
        for first in range(0, num_tiles, step):
            columns = slice(first * TILE, (first + step) * TILE)
            scales = scales_and_zeros[:, None, columns, 0].contiguous()
            written = _dequantize(tiles[first : first + step]).view(scales.shape[0], group_size, -1)
            if has_zeros:
                written = torch.addcmul(scales_and_zeros[:, None, columns, 1], written, scales)
            else:
                written *= scales
            out[:, columns] = rows @ written.view(num_inputs, -1)
        return out

    return multiply


def has_matrix_units(capabilities: Mapping[str, Any]) -> bool:
    """Whether a CPU of these `capabilities`, as torch names them, multiplies bfloat16 itself."""
    return any(capabilities.get(name, False) for name in CAPABILITIES)


@cache
def is_supported() -> bool:
    """Whether this CPU gains by it, and ATen packs codes here in the way that is unpacked."""
    # A torch that the machine brings may be too old to tell.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)
    if not has_matrix_units(capabilities()):
        return False
    codes = torch.randint(16, (2 * TILE, TILE), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    packed: torch.Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2)
    written = _dequantize(_tiles(packed.view(torch.uint8)))
    is_same: bool = torch.equal(written.view(TILE, 2 * TILE), (codes - MIDDLE).t().bfloat16())
    return is_same


def _tiles(packed: torch.Tensor) -> torch.Tensor:
    """[tiles, in, HALF_TILE] bytes: a tile's first half of columns in the low four bits, its second in the high."""
    return packed.view(-1, packed.shape[1] * 2, HALF_TILE)


def _dequantize(tiles: torch.Tensor) -> torch.Tensor:
    """The codes around zero, bfloat16 [in, tiles, TILE]."""
    num_tiles, num_inputs, _ = tiles.shape
    written = torch.empty((num_inputs, num_tiles, TILE), dtype=torch.bfloat16)
    by_tile = written.transpose(0, 1)
    by_tile[..., :HALF_TILE] = (tiles & 15).view(torch.int8).sub_(MIDDLE)
    by_tile[..., HALF_TILE:] = (tiles >> 4).view(torch.int8).sub_(MIDDLE)
    return written
