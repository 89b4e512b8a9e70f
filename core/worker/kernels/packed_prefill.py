"""Products of many rows with a matrix of 4 or 8 bit, as prefills need them.

Compute capability 9.0 multiplies from the codes (cuda/prompts.cu); other GPUs dequantize the matrix first, for cuBLAS.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch

from core.memory.kernels.llamadeck import (
    PREFILL_MAX_BLOCKS,
    PREFILL_PARTIAL_SUM_BYTES,
    PREFILL_TILE_ROWS,
    dequant_buffer_bytes,
    has_fused_prefill,
)
from core.memory.sizes import HALF_BYTES
from core.worker.kernels.fused_norm import FusedRmsNorm
from core.worker.kernels.nvrtc import CudaKernel, CudaModule, read_source
from core.worker.kernels.packed_small_batch import (
    HEAD_ROWS,
    MAX_SHORT_PROMPT,
    PackedLinear,
    PrefillBackend,
    SmallBatchKernels,
    defines_for,
    kernels_for,
)
from core.worker.kernels.packing import K_BLOCK, TILE, CodeFormat, PackedMatrix
from core.worker.kernels.row_norm import MAX_ROW, NORM_THREADS

ROW_THREADS = 256
# The longest rows that are normed with few registers, of which a multiprocessor has several at a time.
USUAL_ROW = 8192
# Inputs of a row for each thread of permute_rows.
PERMUTED_INPUTS = 32
# A last wave that keeps this share of the multiprocessors busy is not split.
FULL_WAVE = 0.9
# The fewest turns that a thread block gets of a split wave.
MIN_SHARE = 4


class PrefillTile(NamedTuple):
    """What a thread block multiplies at once, a turn: 64 * `tiles` outputs for each of `warpgroups`, with `row_tiles`
    tiles of rows and `turn` K blocks; of 4 or 8 bit as many turns are in flight as `stages` says. `cluster`: so many
    thread blocks multiply the same rows at once, each by outputs of its own."""

    tiles: int
    row_tiles: int
    stages: tuple[tuple[int, int], tuple[int, int]]
    warpgroups: int = 2
    turn: int = 1
    cluster: int = 1

    def stages_of(self, bits: int) -> int:
        return dict(self.stages)[bits]

    @property
    def outputs(self) -> int:
        """Of all thread blocks of a cluster."""
        return 64 * self.tiles * self.warpgroups * self.cluster

    @property
    def threads(self) -> int:
        """One warpgroup more copies what they multiply."""
        return 128 * (self.warpgroups + 1)


# By how many rows a tile has: those for one row tile, of many outputs and of few. With two K blocks a turn a warp waits
# half as often for what it multiplies. Found by trying on an H200 (benchmarks/row_products.py).
ONE_ROW_TILES = {
    32: (PrefillTile(2, 1, ((4, 6), (8, 3)), turn=2), PrefillTile(1, 1, ((4, 8), (8, 4)), warpgroups=3, turn=2)),
    64: (PrefillTile(2, 1, ((4, 8), (8, 6))), PrefillTile(1, 1, ((4, 6), (8, 4)), turn=2)),
    128: (PrefillTile(2, 1, ((4, 6), (8, 4))), PrefillTile(1, 1, ((4, 8), (8, 6)))),
}
# The same for matrices of an odd number of K blocks, where some of those have turns of two.
ODD_ROW_TILES = {
    32: (PrefillTile(2, 1, ((4, 6), (8, 4))), PrefillTile(1, 1, ((4, 10), (8, 7)))),
    64: (PrefillTile(2, 1, ((4, 8), (8, 6))), PrefillTile(1, 1, ((4, 7), (8, 5)))),
}
# Of rows that take several tiles of PREFILL_TILE_ROWS, two use each dequantized code for twice the rows. Found by
# trying on an H100; of 8 bit as many stages as there is room for. Two thread blocks of a cluster share the rows, which
# come from the L2 cache once for both.
TWO_ROW_TILES = PrefillTile(1, 2, ((4, 4), (8, 3)), cluster=2)
# The most thread blocks, on average, that share an output tile of many outputs: the last adds the others' sums.
MOST_SHARERS = 3
# The fewest rows for these products. Fewer are multiplied faster by packed_small_batch.py, where a row's result does
# not depend on how many there are.
MIN_STEP_ROWS = HEAD_ROWS[1] + 1


def tile_rows_of(rows: int) -> int:
    """How many rows a tile has in a product of `rows`."""
    return next((one for one in ONE_ROW_TILES if rows <= one), PREFILL_TILE_ROWS)


def stream_k_grid(units: int, turns: int, multiprocessors: int) -> tuple[int, int]:
    """How many thread blocks compute `units` output tiles of `turns` turns each, and how many whole units of those.

    Stream-K: full waves stay whole. The thread blocks share the turns of a last wave that would leave much of the GPU
    idle.
    """
    left = units % multiprocessors
    grid = min(multiprocessors, max(units, units * turns // MIN_SHARE))
    # A unit's last thread block waits for the partial sums of all others, so each must have a share.
    if left == 0 or left >= FULL_WAVE * multiprocessors:
        return min(units, multiprocessors), units
    whole = units // multiprocessors * multiprocessors
    if left * turns < MIN_SHARE * grid:
        # Too little for all by itself: together with the wave before it is enough.
        whole -= multiprocessors
    if whole < 0 or turns < MIN_SHARE:
        return min(units, multiprocessors), units
    return grid, whole


class PrefillKernels:
    """The kernels of cuda/prompts.cu for one dtype and format, on one GPU. is_odd: those of ODD_ROW_TILES."""

    def __init__(
        self, dtype: torch.dtype, format: CodeFormat, tile_rows: int, device: torch.device, is_odd: bool = False
    ) -> None:
        self._one_row_tiles = (ODD_ROW_TILES if is_odd else ONE_ROW_TILES)[tile_rows]
        several = [TWO_ROW_TILES] if tile_rows == PREFILL_TILE_ROWS else []
        tiles = {one: shared_bytes(one, format, tile_rows) for one in (*self._one_row_tiles, *several)}
        lines = (
            f"GEMM({name(one, is_gated)}, {one.tiles}, {one.row_tiles}, {one.stages_of(format.bits)}, "
            f"{one.warpgroups}, {one.turn}, {one.cluster}, {cluster_dims(one)}, {str(is_gated).lower()}, {size})"
            for is_gated in (False, True)
            for one, size in tiles.items()
        )
        source = read_source("hopper.cuh", "codes.cuh", "swizzled.cuh", "prompts.cu", GEMMS=lines)
        defines = {"USUAL_ROW": USUAL_ROW, "MAX_ROW": MAX_ROW, "TILE_ROWS": tile_rows}
        module = CudaModule(source, defines_for(dtype, format) | defines, device)
        self.permute_rows = module.kernel("permute_rows")
        self.rmsnorm_rows = module.kernel("rmsnorm_rows", USUAL_ROW * HALF_BYTES)
        self.rmsnorm_long_rows = module.kernel("rmsnorm_long_rows", MAX_ROW * HALF_BYTES)
        # By tile, then those that give silu(gate) * up.
        self.gemms, self.gated_gemms = (
            {one: module.kernel(name(one, is_gated), size) for one, size in tiles.items()} for is_gated in (False, True)
        )
        found = torch.cuda.get_device_properties(device).multi_processor_count
        self.multiprocessors = min(PREFILL_MAX_BLOCKS, int(found))

    def tile_for(self, row_tiles: int, outputs: int) -> PrefillTile:
        """The tile for so many tiles of rows."""
        if row_tiles > 1:
            return TWO_ROW_TILES
        large, small = self._one_row_tiles
        return large if -(-outputs // large.outputs) * MOST_SHARERS >= self.multiprocessors else small


def rows_of(swizzled: torch.Tensor, rows: int) -> torch.Tensor:
    """What `permute_rows` lays out so, [rows of whole tiles, inputs], in order again (swizzled_offset in
    cuda/swizzled.cuh): [rows, inputs]."""
    inputs, tile_rows = swizzled.shape[1], tile_rows_of(rows)
    row, place = (torch.arange(count, device=swizzled.device) for count in (rows, inputs))
    row = row.unsqueeze(1)
    block = row // tile_rows * (inputs // K_BLOCK) + place // K_BLOCK
    eight = (place % K_BLOCK // 32 * 4 + place % 8 // 2) ^ (row % 8)
    return swizzled.view(-1)[
        (block * tile_rows + row % tile_rows) * K_BLOCK + eight * 8 + place % 32 // 8 * 2 + place % 2
    ]


def name(tile: PrefillTile, is_gated: bool) -> str:
    sizes = tile.tiles, tile.row_tiles, tile.warpgroups, tile.turn, tile.cluster
    return "_".join(("gated_gemm" if is_gated else "gemm", *map(str, sizes)))


def cluster_dims(tile: PrefillTile) -> str:
    """What a kernel says of its clusters: nothing where it has none."""
    return f"__cluster_dims__({tile.cluster}, 1, 1)" if tile.cluster > 1 else ""


def shared_bytes(tile: PrefillTile, format: CodeFormat, tile_rows: int) -> int:
    """Bytes of a thread block's shared memory: `Stages` of cuda/prompts.cu, aligned to 1024 bytes."""
    inputs, tiles = tile.turn * K_BLOCK, 4 * tile.tiles * tile.warpgroups
    scales = max(1, inputs // format.group_size) if format.group_size > 0 else 1
    codes = tiles * (tile.turn * format.pieces * 512 + scales * (1 + format.has_zeros) * 32)
    stage = tile.row_tiles * tile_rows * inputs * 2 + codes + 16
    done = 2 * tile.row_tiles * tile_rows * (tiles * 8 + 8) * 2
    return tile.stages_of(format.bits) * stage + done + 1024


@cache
def prefill_kernels_for(
    dtype: torch.dtype, format: CodeFormat, tile_rows: int, device: torch.device, is_odd: bool = False
) -> PrefillKernels:
    return PrefillKernels(dtype, format, tile_rows, device, is_odd)


class FusedDequantGemm:
    """Multiplies from the codes, which a thread block dequantizes on their way to the tensor cores.

    Thread blocks exchange partial sums through buffers that all products share, so one stream must run all of them.
    """

    min_rows = MIN_STEP_ROWS

    def __init__(self, dtype: torch.dtype, format: CodeFormat, device: torch.device) -> None:
        self._kind = dtype, format, device
        # As much as any tile's.
        self._partial_sums = torch.empty(
            PREFILL_MAX_BLOCKS * PREFILL_PARTIAL_SUM_BYTES // 4, dtype=torch.float32, device=device
        )
        self._ready = torch.zeros(PREFILL_MAX_BLOCKS, dtype=torch.int32, device=device)

    def tiles(self, matrix: PackedMatrix, rows: int) -> Sequence[PrefillTile]:
        """Those that may be chosen for so many rows."""
        row_tiles = -(-rows // tile_rows_of(rows))
        return [one for one in self._kernels(matrix, rows).gemms if (one.row_tiles == 1) == (row_tiles == 1)]

    def multiply(
        self, matrix: PackedMatrix, x: torch.Tensor, bias: torch.Tensor | None, tile: PrefillTile | None = None
    ) -> torch.Tensor:
        """tile: one of `tiles`; None: the one that is right for the matrix."""
        return self.multiply_swizzled(matrix, self.permute_rows(matrix, x), x.shape[0], bias, tile=tile)

    def permute_rows(self, matrix: PackedMatrix, x: torch.Tensor) -> torch.Tensor:
        """x [rows, inputs], in the model's order -> the same in the matrix's order and in wgmma's swizzled layout."""
        rows, swizzled = x.shape[0], self.empty_rows(matrix, x)
        threads = rows * matrix.inputs // PERMUTED_INPUTS
        self._kernels(matrix, rows).permute_rows(
            (-(-threads // ROW_THREADS), 1, 1), ROW_THREADS, x, matrix.permutation, swizzled,
            x.stride(0), rows, matrix.inputs // K_BLOCK,
        )  # fmt: skip
        return swizzled

    def rmsnorm_rows(
        self, matrix: PackedMatrix, x: torch.Tensor, norm: FusedRmsNorm, plain: torch.Tensor | None = None
    ) -> torch.Tensor:
        """RMSNorm of x [rows, inputs], then as `permute_rows`. plain: takes the normed rows as they are."""
        swizzled, kernels = self.empty_rows(matrix, x), self._kernels(matrix, x.shape[0])
        kernel = kernels.rmsnorm_rows if matrix.inputs <= USUAL_ROW else kernels.rmsnorm_long_rows
        kernel(
            (x.shape[0], 1, 1), NORM_THREADS, x, norm.weight, norm.inverse_permutation, swizzled, plain, x.stride(0),
            matrix.inputs // K_BLOCK, norm.eps, norm.offset,
        )  # fmt: skip
        return swizzled

    def _kernels(self, matrix: PackedMatrix, rows: int) -> PrefillKernels:
        dtype, format, device = self._kind
        tile_rows, blocks = tile_rows_of(rows), matrix.inputs // K_BLOCK
        return prefill_kernels_for(dtype, format, tile_rows, device, blocks % 2 > 0 and tile_rows in ODD_ROW_TILES)

    def empty_rows(self, matrix: PackedMatrix, x: torch.Tensor) -> torch.Tensor:
        """Room for what `permute_rows` and `rmsnorm_rows` give of x [rows, inputs]."""
        return self._empty_tiles(x.shape[0], matrix.inputs, x)

    def _empty_tiles(self, rows: int, inputs: int, like: torch.Tensor) -> torch.Tensor:
        """For whole row tiles."""
        tile_rows = tile_rows_of(rows)
        return torch.empty((-(-rows // tile_rows) * tile_rows, inputs), dtype=like.dtype, device=like.device)

    def multiply_swizzled(
        self,
        matrix: PackedMatrix,
        swizzled: torch.Tensor,
        rows: int,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
        tile: PrefillTile | None = None,
    ) -> torch.Tensor:
        """swizzled: what `permute_rows`, `rmsnorm_rows` or `multiply_gated` gave for `rows` rows -> [rows, outputs],
        plus `residual` laid out like it. out: takes the result, as parts of rows that begin on 16 bytes. tile: another
        one than is chosen."""
        if out is None:
            out = torch.empty((rows, matrix.outputs), dtype=swizzled.dtype, device=swizzled.device)
        tile = tile or self._tile_for(matrix, rows)
        kernels = self._kernels(matrix, rows)
        self._run(kernels.gemms[tile], tile, matrix, swizzled, rows, out, bias, residual, None, out.stride(0))
        return out

    def multiply_gated(
        self,
        matrix: PackedMatrix,
        swizzled: torch.Tensor,
        rows: int,
        bias: torch.Tensor | None,
        inverse_permutation: torch.Tensor | None,
        tile: PrefillTile | None = None,
    ) -> torch.Tensor:
        """By a matrix that is gate's outputs, then up's -> silu(gate) * up, as `permute_rows` gives rows for the matrix
        that takes those, whose inputs lie where `inverse_permutation` says. Its inputs are a multiple of K_BLOCK. The
        rest as for `multiply_swizzled`."""
        tile, size = tile or self._tile_for(matrix, rows), matrix.outputs // 2
        kernels = self._kernels(matrix, rows)
        out = self._empty_tiles(rows, size, swizzled)
        self._run(kernels.gated_gemms[tile], tile, matrix, swizzled, rows, out, bias, None, inverse_permutation,
                  size // K_BLOCK)  # fmt: skip
        return out

    def _tile_for(self, matrix: PackedMatrix, rows: int) -> PrefillTile:
        return self._kernels(matrix, rows).tile_for(-(-rows // tile_rows_of(rows)), matrix.outputs)

    def _run(
        self,
        kernel: CudaKernel,
        tile: PrefillTile,
        matrix: PackedMatrix,
        swizzled: torch.Tensor,
        rows: int,
        out: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        inverse_permutation: torch.Tensor | None,
        out_row: int,
    ) -> None:
        tiles, blocks = matrix.codes.shape[:2]
        assert blocks % tile.turn == 0
        row_tiles, multiprocessors = -(-rows // tile_rows_of(rows)), self._kernels(matrix, rows).multiprocessors
        units = -(-matrix.outputs // tile.outputs) * -(-row_tiles // tile.row_tiles)
        clusters, whole = stream_k_grid(units, -(-blocks // tile.turn), multiprocessors // tile.cluster)
        kernel(
            (tile.cluster, clusters, 1), tile.threads, matrix.codes, matrix.scales, matrix.zeros, swizzled, out, bias,
            residual, self._partial_sums, self._ready, inverse_permutation, out_row, rows, tiles, blocks, matrix.groups,
            whole,
        )  # fmt: skip


def gemm_of(module: object) -> FusedDequantGemm | None:
    """What multiplies many rows with a quantized matrix without adapters from its codes; None where nothing does."""
    backend = module.prefill_backend if isinstance(module, PackedLinear) else None
    return backend if isinstance(backend, FusedDequantGemm) else None


class DequantThenGemm:
    """Dequantizes a matrix to half precision, in parts as large as its one buffer, and multiplies those by cuBLAS."""

    min_rows = MAX_SHORT_PROMPT + 1

    def __init__(self, kernels: SmallBatchKernels, num_elements: int, dtype: torch.dtype, device: torch.device) -> None:
        self._kernels = kernels
        self._buffer = torch.empty(dequant_buffer_bytes(num_elements) // dtype.itemsize, dtype=dtype, device=device)

    def multiply(self, matrix: PackedMatrix, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        x = x if matrix.permutation is None else x.index_select(1, matrix.permutation)
        tiles, step = matrix.codes.shape[0], self._buffer.numel() // (matrix.inputs * TILE)
        if step >= tiles:
            out = x @ self._kernels.dequantize(matrix, 0, tiles, self._buffer).t()
            return out if bias is None else out.add_(bias)
        out = torch.empty((x.shape[0], matrix.outputs), dtype=x.dtype, device=x.device)
        for begin in range(0, tiles, step):
            count = min(step, tiles - begin)
            weight = self._kernels.dequantize(matrix, begin, count, self._buffer)
            torch.mm(x, weight.t(), out=out[:, begin * TILE : (begin + count) * TILE])
        return out if bias is None else out.add_(bias)


def make_prefill_backend(
    num_elements: int, dtype: torch.dtype, format: CodeFormat, device: torch.device
) -> PrefillBackend:
    """The backend for the prefills of a model whose largest matrix has `num_elements`, on `device`."""
    if has_fused_prefill(torch.cuda.get_device_capability(device)):
        return FusedDequantGemm(dtype, format, device)
    return DequantThenGemm(kernels_for(dtype, format, device), num_elements, dtype, device)
