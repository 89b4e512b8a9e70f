"""Products of up to 128 rows with a matrix of 4 or 8 bit, straight from its codes on tensor cores (cuda/matrices.cu).

A row's result is the same whatever rows are beside it, up to MAX_SMALL_BATCH of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import nn

from core.worker.kernels.fused_norm import FusedRmsNorm
from core.worker.kernels.low_rank import MAX_TOLD, LowRankRow, LowRankRows
from core.worker.kernels.nvrtc import CudaKernel, CudaModule, read_source
from core.worker.kernels.packed_variants import (
    EPILOGUES,
    MAX_GROUP_SUMS,
    MAX_NORMED,
    SHARED_BYTES_16,
    SINGLE_ROW_VARIANTS,
    VARIANTS,
    Variant,
    bytes_per_input,
    choose_variants,
    choose_warps,
    has_many_tiles,
    shared_bytes,
    stages_of,
)
from core.worker.kernels.packing import TILE, CodeFormat, PackedMatrix, invert_permutation

NUM_THREADS = 256
# Threads that pack each 512 bytes of a tile.
PACK_THREADS = 128
# How many inputs of a row one block sums in `sum_rows`.
INPUTS_PER_SUM_BLOCK = 2048
# The most rows that each kernel takes.
HEAD_ROWS = (8, 16, 32)
# MAX_SMALL_BATCH: steps of up to so many rows, a token of each chat, use these kernels where no faster ones are
# (packed_prefill.py). They read the weights again for every 32 rows, still cheaper than dequantizing. MAX_SHORT_PROMPT:
# GPUs that must dequantize use them for so many tokens of prompts too.
MAX_SMALL_BATCH, MAX_SHORT_PROMPT = 128, 64


@dataclass(frozen=True, slots=True)
class Launch:
    """A compiled variant. `most_blocks`: how many of its blocks the GPU runs at once."""

    kernel: CudaKernel
    variant: Variant
    threads: int
    most_blocks: int

    @property
    def is_single_row(self) -> bool:
        """Whether the kernel takes one row, and sums its scale groups itself."""
        return self.variant.normed or self.threads > NUM_THREADS


class SmallBatchKernels:
    """The compiled kernels of cuda/matrices.cu for one dtype and format, on one GPU. `adapters`: whether their products
    add LoRA adapters."""

    def __init__(self, dtype: torch.dtype, format: CodeFormat, device: torch.device, adapters: bool = False) -> None:
        self._adapters = adapters
        self._dtype, self._format, self._device = dtype, format, device
        self.inputs_per_group = format.inputs_per_group
        properties = torch.cuda.get_device_properties(device)
        self._multiprocessors = properties.multi_processor_count
        self._shared_bytes = properties.shared_memory_per_block_optin
        self._launches: dict[int, dict[tuple[str, str], Launch]] = {}
        module = self.compile_variants(8)
        self._dequantize, self._pack = module.kernel("dequantize"), module.kernel("pack")
        self._sum_rows = module.kernel("sum_rows")

    def compile_variants(self, warps: int) -> CudaModule:
        """Compile the variants with `warps` warps a block: 8, or 16 for one row. Raises CudaCodeError."""
        format = self._format
        made = {
            (epilogue, name): variant
            for name, variant in VARIANTS.items()
            for epilogue in EPILOGUES
            if (epilogue != "swiglu" or variant.tiles % 2 == 0) and not (epilogue == "residual" and variant.normed)
            if warps == 8 or name in SINGLE_ROW_VARIANTS
            if shared_bytes(variant, warps, format) <= self._shared_bytes
        }
        lines = [
            f"PACKED({epilogue}_{name}, {warps}, {one.row_tiles}, {one.tiles}, {stages_of(one, warps, format)}, "
            f"{epilogue.upper()}, {str(one.normed).lower()}, {one.blocks * 8 // warps})"
            for (epilogue, name), one in made.items()
        ]
        source = read_source(
            "codes.cuh", "units.cuh", "low_rank.cuh", "low_rank_down.cuh", "matrices.cu", VARIANTS=lines
        )
        defines = defines_for(self._dtype, format) | {"ADAPTERS": int(self._adapters), "TOLD_FLOATS": MAX_TOLD + 8}
        # The module of 8 warps holds the kernels beside the products.
        defines |= {"PRODUCTS_ALONE": int(warps != 8), "MAX_NORMED": MAX_NORMED}
        module = CudaModule(source, defines, self._device)
        self._launches[warps] = {}
        for (epilogue, name), variant in made.items():
            kernel = module.kernel(f"{epilogue}_{name}", shared_bytes(variant, warps, format))
            most = kernel.most_blocks(warps * 32)
            self._launches[warps][epilogue, name] = Launch(kernel, variant, warps * 32, most)
        return module

    def _launch(self, matrix: PackedMatrix, rows: int, epilogue: str, is_normed: bool) -> Launch:
        tiles = matrix.codes.shape[0]
        is_wide = has_many_tiles(tiles, rows, self._multiprocessors)
        has_room = self._shared_bytes >= SHARED_BYTES_16 and matrix.inputs <= MAX_GROUP_SUMS * self.inputs_per_group
        warps = choose_warps(tiles, matrix.inputs, rows, self._multiprocessors) if has_room else 8
        if warps not in self._launches:
            self.compile_variants(warps)
        launches = self._launches[warps]
        before = "normed_" if is_normed else ""
        made = [(epilogue, before + name) for name in choose_variants(rows, is_wide, epilogue)]
        return min(
            (launches[one] for one in made if one in launches),
            key=lambda one: bytes_per_input(one.variant, tiles, one.most_blocks, self._format.bits),
        )

    def multiply(
        self,
        matrix: PackedMatrix,
        x: torch.Tensor,
        epilogue: str = "none",
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        inverse_permutation: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
        norm: FusedRmsNorm | None = None,
        sums: torch.Tensor | None = None,
        low: LowRankRows | LowRankRow | None = None,
    ) -> torch.Tensor:
        """x [rows, inputs], in the matrix's order -> [rows, outputs].

        epilogue: "residual" adds `residual` [rows, outputs]; "swiglu" gives silu(first half of the outputs) * second
        half, each stored where `inverse_permutation` says. out: takes the result, as rows of a larger tensor.
        norm: for one row of at most MAX_NORMED inputs, in the model's order. sums: `sum_rows(x)`, where it is known.
        low: what the rows' adapters add to the outputs, before the epilogue.
        """
        if low is not None and not self._adapters:
            adapted = kernels_for(self._dtype, self._format, self._device, adapters=True)
            return adapted.multiply(matrix, x, epilogue, bias, residual, inverse_permutation, out, norm, sums, low)
        assert (low is not None) == self._adapters
        outputs = matrix.outputs // 2 if epilogue == "swiglu" else matrix.outputs
        out = torch.empty((x.shape[0], outputs), dtype=x.dtype, device=x.device) if out is None else out
        tiles, blocks = matrix.codes.shape[:2]
        for begin in range(0, x.shape[0], HEAD_ROWS[-1]):
            rows = min(HEAD_ROWS[-1], x.shape[0] - begin)
            launch = self._launch(matrix, rows, epilogue, norm is not None)
            if isinstance(low, LowRankRow) and not launch.is_single_row:
                low = low.down()
            if sums is None and not launch.is_single_row:
                sums = self.sum_rows(x)
            launch.kernel(
                (min(-(-tiles // launch.variant.tiles), launch.most_blocks), 1, 1), launch.threads, matrix.codes,
                matrix.scales, matrix.zeros, x[begin:], out[begin:], bias,
                None if residual is None else residual[begin:], inverse_permutation, x.stride(0), out.stride(0), rows,
                tiles, blocks, matrix.groups, *(norm or (None, None, 0.0, 0.0)),
                None if sums is None else sums[:, begin:], 0 if sums is None else sums.stride(0),
                *(low.product_arguments(begin) if low is not None else ()),
            )  # fmt: skip
        return out

    def sum_rows(self, x: torch.Tensor) -> torch.Tensor:
        """x [rows, inputs] -> the sums of each row's scale groups, as `empty_group_sums` lays them out."""
        sums = empty_group_sums(x, self.inputs_per_group)
        parts = -(-x.shape[1] // INPUTS_PER_SUM_BLOCK)
        self._sum_rows((x.shape[0], parts, 1), NUM_THREADS, x, sums, x.stride(0), x.shape[1], sums.stride(0))
        return sums

    def dequantize(self, matrix: PackedMatrix, first_tile: int, num_tiles: int, out: torch.Tensor) -> torch.Tensor:
        """Tiles from `first_tile` on as [outputs, inputs] in half precision, in the first elements of `out`."""
        blocks = matrix.codes.shape[1]
        self._dequantize((num_tiles, 1, 1), NUM_THREADS, matrix.codes, matrix.scales, matrix.zeros, out, first_tile,
                        blocks, matrix.groups)  # fmt: skip
        return out[: num_tiles * TILE * matrix.inputs].view(num_tiles * TILE, matrix.inputs)

    def pack(self, words: torch.Tensor, permutation: torch.Tensor | None, codes: torch.Tensor, first_tile: int) -> None:
        """Repack a checkpoint's words [inputs * bits / 32, outputs] into `codes` (packing.py's tiles) from `first_tile`
        on."""
        blocks, outputs, num_threads = codes.shape[1], words.shape[1], PACK_THREADS * self._format.pieces
        self._pack((blocks, outputs // TILE, 1), num_threads, words, permutation, codes, blocks, outputs, first_tile)


def empty_group_sums(x: torch.Tensor, inputs_per_group: int) -> torch.Tensor:
    """Room for the sums of x's [rows, inputs] scale groups: float32 [groups, rows], with rows rounded up to 8, 16 or a
    multiple of 32, which the kernels read."""
    rows = x.shape[0]
    rows = 8 if rows <= 8 else 16 if rows <= 16 else -(-rows // HEAD_ROWS[-1]) * HEAD_ROWS[-1]
    return torch.empty((x.shape[1] // inputs_per_group, rows), dtype=torch.float32, device=x.device)


def defines_for(dtype: torch.dtype, format: CodeFormat) -> dict[str, int]:
    """The defines that every kernel over quantized matrices is compiled with."""
    is_bf16, has_zeros = int(dtype == torch.bfloat16), int(format.has_zeros)
    return {"BF16": is_bf16, "BITS": format.bits, "GROUP_SIZE_32": format.group_size_32, "ZEROS": has_zeros}


@cache
def kernels_for(
    dtype: torch.dtype, format: CodeFormat, device: torch.device, adapters: bool = False
) -> SmallBatchKernels:
    return SmallBatchKernels(dtype, format, device, adapters)


class PrefillBackend(Protocol):
    """Multiplies the rows of prefills by a matrix (packed_prefill.py). `min_rows`: the fewest of one prompt for it."""

    min_rows: int

    def multiply(self, matrix: PackedMatrix, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [rows, inputs], in the model's order -> [rows, outputs]."""


class PackedLinear(nn.Module):
    """A matrix of 4 or 8 bit as a module. All matrices of a model on one GPU share `kernels` and `prefill_backend`."""

    def __init__(
        self,
        matrix: PackedMatrix,
        bias: torch.Tensor | None,
        kernels: SmallBatchKernels,
        prefill_backend: PrefillBackend,
    ) -> None:
        super().__init__()
        self.matrix, self.bias, self.kernels, self.prefill_backend = matrix, bias, kernels, prefill_backend
        self.out_features = matrix.outputs
        self.inverse_permutation = None if matrix.permutation is None else invert_permutation(matrix.permutation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., inputs] -> [..., outputs]. Up to MAX_SMALL_BATCH rows of one token each, a row's result depends on that
        row alone."""
        rows = x.reshape(-1, x.shape[-1])
        if x.shape[-2] >= self.prefill_backend.min_rows or rows.shape[0] > MAX_SMALL_BATCH:
            out = self.prefill_backend.multiply(self.matrix, rows, self.bias)
        else:
            rows = rows if self.matrix.permutation is None else rows.index_select(1, self.matrix.permutation)
            out = self.kernels.multiply(self.matrix, rows, "none", self.bias)
        return out.view(*x.shape[:-1], self.out_features)
