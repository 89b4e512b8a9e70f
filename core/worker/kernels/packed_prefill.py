"""Products of many rows with a matrix of 4 or 8 bit, as prefills need them.

Compute capability 9.0 multiplies from the codes (cuda/prompts.cu); other GPUs dequantize the matrix first, for cuBLAS.
"""

from __future__ import annotations

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
from core.worker.kernels.fused_norm import FusedRmsNorm
from core.worker.kernels.nvrtc import CudaModule, read_source
from core.worker.kernels.packed_small_batch import (
    HEAD_ROWS,
    MAX_SHORT_PROMPT,
    PrefillBackend,
    SmallBatchKernels,
    defines_for,
    kernels_for,
)
from core.worker.kernels.packing import K_BLOCK, TILE, CodeFormat, PackedMatrix
from core.worker.kernels.row_norm import MAX_ROW, NORM_THREADS

GEMM_THREADS, ROW_THREADS = 384, 256
# Inputs of a row for each thread of permute_rows, and of swiglu_rows.
PERMUTED_INPUTS, SWIGLU_INPUTS = 32, 8
# A last wave that keeps this share of the multiprocessors busy is not split.
FULL_WAVE = 0.9
# The fewest K blocks that a thread block gets of a split wave.
MIN_SHARE = 4


class PrefillTile(NamedTuple):
    """What a thread block multiplies at once: 128 * `tiles` outputs with `row_tiles` * 128 rows, with as many K blocks
    of 4 or 8 bit in flight as `stages` says."""

    tiles: int
    row_tiles: int
    stages: tuple[tuple[int, int], tuple[int, int]]

    def stages_of(self, bits: int) -> int:
        return dict(self.stages)[bits]

    @property
    def outputs(self) -> int:
        return 128 * self.tiles


# Two row tiles use each dequantized code for twice the rows. Found by trying on an H100; of 8 bit as many stages as
# there is room for.
ONE_ROW_TILE, TWO_ROW_TILES = PrefillTile(2, 1, ((4, 6), (8, 4))), PrefillTile(1, 2, ((4, 4), (8, 3)))


def stream_k_grid(units: int, blocks: int, multiprocessors: int) -> tuple[int, int]:
    """How many thread blocks compute `units` output tiles of `blocks` K blocks each, and how many whole units of those.

    Stream-K: full waves stay whole. The thread blocks share the K blocks of a last wave that would leave much of the
    GPU idle.
    """
    left = units % multiprocessors
    grid = min(multiprocessors, max(units, units * blocks // MIN_SHARE))
    # A unit's first thread block waits for the partial sums of all others, so each must have a share.
    if left == 0 or left >= FULL_WAVE * multiprocessors or left * blocks < MIN_SHARE * grid:
        return min(units, multiprocessors), units
    return grid, units // multiprocessors * multiprocessors


class PrefillKernels:
    """The kernels of cuda/prompts.cu for one dtype and format, on one GPU."""

    def __init__(self, dtype: torch.dtype, format: CodeFormat, device: torch.device) -> None:
        tiles = {one: shared_bytes(one, format) for one in (ONE_ROW_TILE, TWO_ROW_TILES)}
        lines = (
            f"GEMM({name(one)}, {one.tiles}, {one.row_tiles}, {one.stages_of(format.bits)}, {size})"
            for one, size in tiles.items()
        )
        source = read_source("hopper.cuh", "codes.cuh", "swizzled.cuh", "prompts.cu", GEMMS=lines)
        module = CudaModule(
            source, defines_for(dtype, format) | {"MAX_ROW": MAX_ROW, "TILE_ROWS": PREFILL_TILE_ROWS}, device
        )
        self.permute_rows = module.kernel("permute_rows")
        self.rmsnorm_rows, self.swiglu_rows = module.kernel("rmsnorm_rows"), module.kernel("swiglu_rows")
        self.gemms = {one: module.kernel(name(one), size) for one, size in tiles.items()}
        found = torch.cuda.get_device_properties(device).multi_processor_count
        self.multiprocessors = min(PREFILL_MAX_BLOCKS, int(found))


def name(tile: PrefillTile) -> str:
    return f"gemm_{tile.tiles}_{tile.row_tiles}"


def shared_bytes(tile: PrefillTile, format: CodeFormat) -> int:
    """Bytes of a thread block's shared memory: `Stages` of cuda/prompts.cu, aligned to 1024 bytes."""
    scales = format.scales_per_block * (1 + format.has_zeros)
    codes = 8 * tile.tiles * (format.pieces * 512 + scales * 32)
    stage = tile.row_tiles * PREFILL_TILE_ROWS * K_BLOCK * 2 + codes + 16
    done = 2 * tile.row_tiles * PREFILL_TILE_ROWS * (tile.tiles * 64 + 8) * 2
    return tile.stages_of(format.bits) * stage + done + 1024


@cache
def prefill_kernels_for(dtype: torch.dtype, format: CodeFormat, device: torch.device) -> PrefillKernels:
    return PrefillKernels(dtype, format, device)


class FusedDequantGemm:
    """Multiplies from the codes, which a thread block dequantizes on their way to the tensor cores.

    Thread blocks exchange partial sums through buffers that all products share, so one stream must run all of them.
    """

    # The small-batch kernels read the weights once for up to this many rows.
    min_rows = HEAD_ROWS[-1] + 1

    def __init__(self, kernels: PrefillKernels, device: torch.device) -> None:
        self._kernels = kernels
        self._partial_sums = torch.empty(
            PREFILL_MAX_BLOCKS * PREFILL_PARTIAL_SUM_BYTES // 4, dtype=torch.float32, device=device
        )
        self._ready = torch.zeros(PREFILL_MAX_BLOCKS, dtype=torch.int32, device=device)

    def multiply(self, matrix: PackedMatrix, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return self.multiply_swizzled(matrix, self.permute_rows(matrix, x), x.shape[0], bias)

    def permute_rows(self, matrix: PackedMatrix, x: torch.Tensor) -> torch.Tensor:
        """x [rows, inputs], in the model's order -> the same in the matrix's order and in wgmma's swizzled layout."""
        rows, swizzled = x.shape[0], self._buffer(matrix, x)
        threads = rows * matrix.inputs // PERMUTED_INPUTS
        self._kernels.permute_rows((-(-threads // ROW_THREADS), 1, 1), ROW_THREADS, x, matrix.permutation, swizzled,
                              x.stride(0), rows, matrix.inputs // K_BLOCK)  # fmt: skip
        return swizzled

    def rmsnorm_rows(self, matrix: PackedMatrix, x: torch.Tensor, norm: FusedRmsNorm) -> torch.Tensor:
        """RMSNorm of x [rows, inputs], then as `permute_rows`."""
        swizzled = self._buffer(matrix, x)
        self._kernels.rmsnorm_rows((x.shape[0], 1, 1), NORM_THREADS, x, norm.weight, norm.inverse_permutation, swizzled,
                                     x.stride(0), matrix.inputs // K_BLOCK, norm.eps, norm.offset)  # fmt: skip
        return swizzled

    def swiglu_rows(
        self, matrix: PackedMatrix, both: torch.Tensor, inverse_permutation: torch.Tensor | None
    ) -> torch.Tensor:
        """both [rows, 2 * inputs]: silu(first half) * second half, then as `permute_rows`."""
        swizzled = self._buffer(matrix, both)
        threads = both.shape[0] * matrix.inputs // SWIGLU_INPUTS
        self._kernels.swiglu_rows((-(-threads // ROW_THREADS), 1, 1), ROW_THREADS, both, inverse_permutation, swizzled,
                                    both.shape[0], matrix.inputs // K_BLOCK)  # fmt: skip
        return swizzled

    def _buffer(self, matrix: PackedMatrix, x: torch.Tensor) -> torch.Tensor:
        rows = -(-x.shape[0] // PREFILL_TILE_ROWS) * PREFILL_TILE_ROWS
        return torch.empty((rows, matrix.inputs), dtype=x.dtype, device=x.device)

    def multiply_swizzled(
        self,
        matrix: PackedMatrix,
        swizzled: torch.Tensor,
        rows: int,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """swizzled: what `permute_rows`, `rmsnorm_rows` or `swiglu_rows` gave for `rows` rows -> [rows, outputs], plus
        `residual` laid out like it. out: takes the result, as parts of rows that begin on 16 bytes."""
        tiles, blocks = matrix.codes.shape[:2]
        row_tiles = -(-rows // PREFILL_TILE_ROWS)
        if out is None:
            out = torch.empty((rows, matrix.outputs), dtype=swizzled.dtype, device=swizzled.device)
        tile = ONE_ROW_TILE if row_tiles == 1 else TWO_ROW_TILES
        units = -(-matrix.outputs // tile.outputs) * -(-row_tiles // tile.row_tiles)
        grid, whole = stream_k_grid(units, blocks, self._kernels.multiprocessors)
        self._kernels.gemms[tile](
            (grid, 1, 1), GEMM_THREADS, matrix.codes, matrix.scales, matrix.zeros, swizzled, out, bias, residual,
            self._partial_sums, self._ready, out.stride(0), rows, tiles, blocks, matrix.groups, whole,
        )  # fmt: skip
        return out


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
        return FusedDequantGemm(prefill_kernels_for(dtype, format, device), device)
    return DequantThenGemm(kernels_for(dtype, format, device), num_elements, dtype, device)
