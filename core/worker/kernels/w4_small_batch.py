"""A 4-bit matrix for the kernels of cuda/matrices.cu: few rows on tensor cores from the codes.

Knows no model. What comes out for a row is the same whatever rows are beside it, up to MAX_CODE_ROWS of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import nn

from core.worker.kernels.nvrtc import CudaKernel, CudaModule
from core.worker.kernels.packing import BLOCK, TILE, PackedMatrix

SOURCES = Path(__file__).parent / "cuda"
NUM_THREADS = 256
PACK_THREADS = 128
# How many inputs of a row a block sums.
SUMMED_TOGETHER = 2048
HEAD_PARTS = 8
# How many inputs of one row a block keeps normed in shared memory; where it is not normed, of how many runs the sums.
MAX_NORMED = 8192
MAX_RUNS = 1024
FINISHES = ("plain", "added", "gated")
# Up to here rows of several chats are multiplied by these kernels, which read the codes again for every 32: that costs
# less than writing a matrix out, so prompts are as well where it would be.
MAX_CODE_ROWS = 64


@dataclass(frozen=True, slots=True)
class Variant:
    """How a kernel takes up to 8 * `row_tiles` rows: `tiles` of outputs and `depth` units on their way for each warp.
    `blocks` of 8 warps are on a multiprocessor at least, half as many of 16."""

    row_tiles: int
    tiles: int
    depth: int
    blocks: int
    normed: bool = False


# Found by trying on an H200 and an H100.
VARIANTS = {
    "narrow": Variant(1, 1, 4, 4),
    # Many tiles: two share the inputs.
    "wide": Variant(1, 2, 2, 3),
    # Several rows are read again for each tile, so two share them where tiles are few as well, with more on its way.
    "deep": Variant(1, 2, 3, 2),
    # One row, through RMSNorm first.
    "normed_narrow": Variant(1, 1, 4, 4, normed=True),
    "normed_wide": Variant(1, 2, 2, 3, normed=True),
    "rows16": Variant(2, 2, 3, 2),
    # More tiles share the rows, which are read again for every turn, where that leaves enough turns for all blocks.
    "rows32": Variant(4, 2, 3, 1),
    "rows32_3": Variant(4, 3, 3, 1),
    "rows32_4": Variant(4, 4, 3, 1),
}
HEAD_ROWS = (8, 16, 32)
# More tiles than these for each multiprocessor are many: for one row, and for more.
MANY_TILES_OF_ONE, MANY_TILES = 2, 4
# From so many inputs on, what one of 8 warps does for one row takes too long.
LONG_INPUTS = 5120
# What one row is multiplied with, by 16 warps too.
FOR_ONE_ROW = ("narrow", "wide", "normed_narrow", "normed_wide")
# What 16 warps of those need of shared memory.
SHARED_BYTES_16 = 160_000


def has_many_tiles(tiles: int, rows: int, multiprocessors: int) -> bool:
    return tiles > (MANY_TILES_OF_ONE if rows == 1 else MANY_TILES) * multiprocessors


def choose_warps(tiles: int, inputs: int, rows: int, multiprocessors: int) -> int:
    """How many warps share a tile's inputs: 16 for one row, where they are long or tiles few. More rows are multiplied
    faster by two blocks of 8."""
    return 16 if rows == 1 and (inputs >= LONG_INPUTS or tiles <= MANY_TILES * multiprocessors) else 8


def choose_variants(rows: int, is_wide: bool, finish: str) -> tuple[str, ...]:
    """The variants for up to 32 rows of a matrix that `is_wide` or not. A gated product takes a gate's tile with its
    partner."""
    if rows > 16:
        return ("rows32", "rows32_4") if finish == "gated" else ("rows32", "rows32_3", "rows32_4")
    if rows > 8:
        return ("rows16",)
    if finish == "gated" or is_wide:
        return ("wide",)
    return ("deep",) if rows > 1 else ("narrow",)


def bytes_an_input(variant: Variant, tiles: int, most_blocks: int) -> int:
    """What the busiest of `most_blocks` blocks of threads reads for an input: in each turn the rows, and the codes of
    its tiles."""
    turns = -(-tiles // (variant.tiles * most_blocks))
    return turns * (variant.row_tiles * 8 * 2 + variant.tiles * TILE // 2)


@dataclass(frozen=True, slots=True)
class Launch:
    kernel: CudaKernel
    variant: Variant
    threads: int
    most_blocks: int  # that are on the GPU at once

    @property
    def is_for_one(self) -> bool:
        """Whether it takes one row, and finds its sums itself."""
        return self.variant.normed or self.threads > NUM_THREADS


class Norm(NamedTuple):
    """RMSNorm before a product: its weight, where the matrix wants each input (None: in order), and its epsilon."""

    weight: torch.Tensor
    places: torch.Tensor | None
    eps: float


class DeckKernels:
    """The compiled products for one type and group size on one GPU."""

    def __init__(self, dtype: torch.dtype, group_size: int, has_zeros: bool, device: torch.device) -> None:
        halves = halves_of(group_size)
        self._how, self.run = (dtype, halves, has_zeros, device), run_of(halves)
        properties = torch.cuda.get_device_properties(device)
        self._multiprocessors = properties.multi_processor_count
        self._shared_bytes = properties.shared_memory_per_block_optin
        self._launches: dict[int, dict[tuple[str, str], Launch]] = {}
        module = self._compile(8)
        self._write_out, self._pack = module.kernel("write_out"), module.kernel("pack")
        self._sum_rows = module.kernel("sum_rows")
        self._heads = {rows: module.kernel(f"head_{rows}", HEAD_PARTS * rows * TILE * 4) for rows in HEAD_ROWS}

    def _compile(self, warps: int) -> CudaModule:
        """The variants for `warps` warps a block."""
        dtype, halves, has_zeros, device = self._how
        made = {
            (finish, name): variant
            for name, variant in VARIANTS.items()
            for finish in FINISHES
            if (finish != "gated" or variant.tiles % 2 == 0) and not (finish == "added" and variant.normed)
            if warps == 8 or name in FOR_ONE_ROW
            if shared_bytes(variant, warps, halves, has_zeros) <= self._shared_bytes
        }
        lines = [
            f"PACKED({finish}_{name}, {warps}, {one.row_tiles}, {one.tiles}, {depth_of(one, warps)}, {finish.upper()}, "
            f"{str(one.normed).lower()}, {one.blocks * 8 // warps})"
            for (finish, name), one in made.items()
        ]
        source = read_source("codes.cuh", "matrices.cu", VARIANTS=lines)
        defines = defines_for(dtype, halves, has_zeros)
        # All but the products is there once.
        defines |= {"HEAD_PARTS": HEAD_PARTS if warps == 8 else 0, "MAX_NORMED": MAX_NORMED}
        module = CudaModule(source, defines, device)
        self._launches[warps] = {}
        for (finish, name), variant in made.items():
            kernel = module.kernel(f"{finish}_{name}", shared_bytes(variant, warps, halves, has_zeros))
            most = kernel.most_blocks(warps * 32)
            self._launches[warps][finish, name] = Launch(kernel, variant, warps * 32, most)
        return module

    def _launch(self, matrix: PackedMatrix, rows: int, finish: str, is_normed: bool) -> Launch:
        tiles = matrix.codes.shape[0]
        is_wide = has_many_tiles(tiles, rows, self._multiprocessors)
        has_room = self._shared_bytes >= SHARED_BYTES_16 and matrix.inputs <= MAX_RUNS * self.run
        warps = choose_warps(tiles, matrix.inputs, rows, self._multiprocessors) if has_room else 8
        if warps not in self._launches:
            self._compile(warps)
        launches = self._launches[warps]
        before = "normed_" if is_normed else ""
        made = [(finish, before + name) for name in choose_variants(rows, is_wide, finish)]
        return min(
            (launches[one] for one in made if one in launches),
            key=lambda one: bytes_an_input(one.variant, tiles, one.most_blocks),
        )

    def multiply(
        self,
        matrix: PackedMatrix,
        x: torch.Tensor,
        finish: str = "plain",
        bias: torch.Tensor | None = None,
        added: torch.Tensor | None = None,
        places: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
        norm: Norm | None = None,
        sums: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x [rows, inputs], in the matrix's order, -> [rows, outputs]; "added": plus `added` of that shape; "gated":
        the first half of the outputs through silu, times the second, each put at its `places`.

        `out` takes the result where it is given, as rows of a larger tensor. `norm` is for one row of at most
        MAX_NORMED inputs, which then come in the model's order. `sums`: what `sum_rows` finds of x, where it is known.
        """
        outputs = matrix.outputs // 2 if finish == "gated" else matrix.outputs
        out = torch.empty((x.shape[0], outputs), dtype=x.dtype, device=x.device) if out is None else out
        tiles, blocks = matrix.codes.shape[:2]
        for begin in range(0, x.shape[0], HEAD_ROWS[-1]):
            rows = min(HEAD_ROWS[-1], x.shape[0] - begin)
            launch = self._launch(matrix, rows, finish, norm is not None)
            if sums is None and not launch.is_for_one:
                sums = self.sum_rows(x)
            launch.kernel(
                (min(-(-tiles // launch.variant.tiles), launch.most_blocks), 1, 1), launch.threads, matrix.codes,
                matrix.scales, matrix.zeros, x[begin:], out[begin:], bias, None if added is None else added[begin:],
                places, x.stride(0), out.stride(0), rows, tiles, blocks, matrix.groups, *(norm or (None, None, 0.0)),
                None if sums is None else sums[:, begin:], 0 if sums is None else sums.stride(0),
            )  # fmt: skip
        return out

    def sum_rows(self, x: torch.Tensor) -> torch.Tensor:
        """x [rows, inputs] -> the sums of each row's runs, [runs, rows that have room], for the products of several."""
        sums = room_for_sums(x, self.run)
        parts = -(-x.shape[1] // SUMMED_TOGETHER)
        self._sum_rows((x.shape[0], parts, 1), NUM_THREADS, x, sums, x.stride(0), x.shape[1], sums.stride(0))
        return sums

    def multiply_head(self, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """x [rows, inputs] -> [rows, outputs] over a half-precision `weight` [outputs, inputs]."""
        out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
        for begin in range(0, x.shape[0], HEAD_ROWS[-1]):
            rows = min(HEAD_ROWS[-1], x.shape[0] - begin)
            kernel = self._heads[next(most for most in HEAD_ROWS if most >= rows)]
            kernel((-(-weight.shape[0] // TILE), 1, 1), NUM_THREADS, weight, x[begin:], out[begin:], x.stride(0),
                   weight.shape[0], rows, weight.shape[0], weight.shape[1] // BLOCK)  # fmt: skip
        return out

    def write_out(self, matrix: PackedMatrix, first_tile: int, num_tiles: int, out: torch.Tensor) -> torch.Tensor:
        """Tiles of the matrix as [outputs, inputs] in half precision, in the first places of `out`."""
        blocks = matrix.codes.shape[1]
        self._write_out((num_tiles, 1, 1), NUM_THREADS, matrix.codes, matrix.scales, matrix.zeros, out, first_tile,
                        blocks, matrix.groups)  # fmt: skip
        return out[: num_tiles * TILE * matrix.inputs].view(num_tiles * TILE, matrix.inputs)

    def pack(self, words: torch.Tensor, order: torch.Tensor | None, codes: torch.Tensor, first_tile: int) -> None:
        """Put a checkpoint's words [inputs / 8, outputs] into `codes` from a tile on, in packing.py's order."""
        blocks, outputs = codes.shape[1], words.shape[1]
        self._pack((blocks, outputs // TILE, 1), PACK_THREADS, words, order, codes, blocks, outputs, first_tile)


def depth_of(variant: Variant, warps: int) -> int:
    """With 16 warps less need be on its way for each, where that is not little already."""
    return 3 if warps == 16 and variant.depth == 4 else variant.depth


def shared_bytes(variant: Variant, warps: int, halves: int, has_zeros: bool) -> int:
    """What a block keeps in shared memory: the weights on their way, and one or two sets of sums (cuda/matrices.cu)."""
    unit, scales = max(1, halves // 2), 2 if halves == 1 else 1
    arriving = depth_of(variant, warps) * variant.tiles * (unit * 512 + scales * 128 * (1 + has_zeros))
    is_for_one = variant.normed or warps == 16
    each = (1 if is_for_one else variant.row_tiles * 8) * variant.tiles * TILE
    sums = warps * each * 4 * (1 if each > 512 else 2)
    starts = 16 * (MAX_NORMED // run_of(halves) if variant.normed else MAX_RUNS if is_for_one else 0)
    return warps * arriving + sums + starts + (MAX_NORMED * 2 if variant.normed else 0)


def read_source(*names: str, **made: Iterable[str]) -> str:
    """The files' text after what all share, with the lines that are `made` in place of the line that names them."""
    source = "\n".join((SOURCES / file).read_text("utf-8") for file in ("common.cuh", *names))
    for name, lines in made.items():
        source = source.replace(f"\n{name}\n", "\n" + "\n".join(lines) + "\n")
    return source


def halves_of(group_size: int) -> int:
    """How many 32 inputs share a scale; 0: all do."""
    return 0 if group_size < 0 else group_size // 32


def run_of(halves: int) -> int:
    """How many inputs' products are added before they are scaled: a group's, or of a column with one scale 64."""
    return 32 * halves or BLOCK


def room_for_sums(x: torch.Tensor, run: int) -> torch.Tensor:
    """Room for the sums of x's [rows, inputs] runs, [runs, rows]; what takes up to 8, 16 or 32 rows reads as many."""
    rows = x.shape[0]
    rows = 8 if rows <= 8 else 16 if rows <= 16 else -(-rows // HEAD_ROWS[-1]) * HEAD_ROWS[-1]
    return torch.empty((x.shape[1] // run, rows), dtype=torch.float32, device=x.device)


def defines_for(dtype: torch.dtype, halves: int, has_zeros: bool) -> dict[str, int]:
    """What the products of 4-bit matrices are compiled for."""
    return {"BF16": int(dtype == torch.bfloat16), "HALVES": halves, "ZEROS": int(has_zeros)}


def places_of(order: torch.Tensor) -> torch.Tensor:
    """Where each input goes, for an `order` that says which input each place takes."""
    places = torch.empty_like(order)
    places[order.long()] = torch.arange(order.numel(), dtype=order.dtype, device=order.device)
    return places


@cache
def kernels_for(dtype: torch.dtype, group_size: int, has_zeros: bool, device: torch.device) -> DeckKernels:
    return DeckKernels(dtype, group_size, has_zeros, device)


class ManyRows(Protocol):
    """Rows of prompts times a matrix (w4_prefill.py). `least_rows`: how many of one prompt it takes at least."""

    least_rows: int

    def multiply(self, matrix: PackedMatrix, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [rows, inputs], in the model's order -> [rows, outputs]."""


class DeckLinear(nn.Module):
    """The matrix as a module. `many` multiplies prompts, for all matrices of a model. `places` [inputs] is the
    matrix's order turned around: where each input goes."""

    def __init__(self, matrix: PackedMatrix, bias: torch.Tensor | None, kernels: DeckKernels, many: ManyRows) -> None:
        super().__init__()
        self.matrix, self.bias, self.kernels, self.many = matrix, bias, kernels, many
        self.out_features = matrix.outputs
        self.places = None if matrix.order is None else places_of(matrix.order)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., inputs] -> [..., outputs]. Rows of up to MAX_CODE_ROWS chats are the same however many there are."""
        rows = x.reshape(-1, x.shape[-1])
        if x.shape[-2] >= self.many.least_rows or rows.shape[0] > MAX_CODE_ROWS:
            out = self.many.multiply(self.matrix, rows, self.bias)
        else:
            rows = rows if self.matrix.order is None else rows.index_select(1, self.matrix.order)
            out = self.kernels.multiply(self.matrix, rows, "plain", self.bias)
        return out.view(*x.shape[:-1], self.out_features)
