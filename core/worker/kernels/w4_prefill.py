"""Many rows times a 4-bit matrix: from its codes on the tensor cores of compute capability 9.0, else written out first.

Knows no model.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from core.memory.plan import PROMPT_BLOCKS, PROMPT_PIECE_ROWS, PROMPT_SUM_BYTES, takes_prompts_from_codes, written_bytes
from core.worker.kernels.decode_attention import MAX_ROW, NORM_THREADS
from core.worker.kernels.nvrtc import CudaModule
from core.worker.kernels.packing import BLOCK, TILE, PackedMatrix
from core.worker.kernels.w4_small_batch import (
    HEAD_ROWS,
    MAX_CODE_ROWS,
    DeckKernels,
    ManyRows,
    Norm,
    defines_for,
    halves_of,
    kernels_for,
    read_source,
)

PRODUCT_THREADS, ARRANGE_THREADS = 384, 256
# Inputs of a row that one thread arranges, and that one thread takes through a gate first.
ARRANGED_INPUTS, GATED_INPUTS = 32, 8
# A last round that keeps this share of the multiprocessors busy is not worth sharing out.
ENOUGH = 0.9
# Blocks of inputs that a share has at least.
MIN_SHARE = 4


class Product(NamedTuple):
    """A block of threads multiplies 128 * `tiles` outputs with `pieces` of 128 rows; `stages` of 64 inputs are under
    way."""

    tiles: int
    pieces: int
    stages: int

    @property
    def outputs(self) -> int:
        return 128 * self.tiles


# For one piece, and for more: twice the rows for each code that is made a number. Found by trying on an H100.
FEW, MANY = Product(2, 1, 6), Product(1, 2, 4)


def share_out(units: int, blocks: int, multiprocessors: int) -> tuple[int, int]:
    """For `units` of `blocks` of inputs each: how many blocks of threads, and how many units are not shared by them.

    Whole rounds are not; a last one that would leave much of the GPU idle is.
    """
    left = units % multiprocessors
    grid = min(multiprocessors, max(units, units * blocks // MIN_SHARE))
    # Who adds up a unit waits for every block behind it, so each must have a share.
    if left == 0 or left >= ENOUGH * multiprocessors or left * blocks < MIN_SHARE * grid:
        return min(units, multiprocessors), units
    return grid, units // multiprocessors * multiprocessors


class PromptKernels:
    """The compiled products for one type and group size on one GPU."""

    def __init__(self, dtype: torch.dtype, group_size: int, has_zeros: bool, device: torch.device) -> None:
        halves = halves_of(group_size)
        lines = (
            f"PRODUCT({name(one)}, {one.tiles}, {one.pieces}, {one.stages}, {shared_bytes(one, halves, has_zeros)})"
            for one in (FEW, MANY)
        )
        source = read_source("hopper.cuh", "codes.cuh", "prompts.cu", PRODUCTS=lines)
        module = CudaModule(source, defines_for(dtype, halves, has_zeros) | {"MAX_ROW": MAX_ROW}, device)
        self.arrange = module.kernel("arrange")
        self.arrange_normed, self.arrange_gated = module.kernel("arrange_normed"), module.kernel("arrange_gated")
        self.products = {one: module.kernel(name(one), shared_bytes(one, halves, has_zeros)) for one in (FEW, MANY)}
        found = torch.cuda.get_device_properties(device).multi_processor_count
        self.multiprocessors = min(PROMPT_BLOCKS, int(found))


def name(product: Product) -> str:
    return f"product_{product.tiles}_{product.pieces}"


def shared_bytes(product: Product, halves: int, has_zeros: bool) -> int:
    """What a block keeps in shared memory: `Stages` of cuda/prompts.cu, from the next 1024 bytes on."""
    scales = (2 if halves == 1 else 1) * (1 + has_zeros)
    codes = 8 * product.tiles * (512 + scales * 32)
    stage = product.pieces * PROMPT_PIECE_ROWS * BLOCK * 2 + codes + 16
    done = 2 * product.pieces * PROMPT_PIECE_ROWS * (product.tiles * 64 + 8) * 2
    return product.stages * stage + done + 1024


@cache
def prompt_kernels_for(dtype: torch.dtype, group_size: int, has_zeros: bool, device: torch.device) -> PromptKernels:
    return PromptKernels(dtype, group_size, has_zeros, device)


class FromCodes:
    """The matrices of a model as they are. What blocks of threads add up for one another is kept here, so all that is
    multiplied must be in one stream."""

    # Fewer are read once by the kernels for few rows.
    least_rows = HEAD_ROWS[-1] + 1

    def __init__(self, kernels: PromptKernels, device: torch.device) -> None:
        self._kernels = kernels
        self._sums = torch.empty(PROMPT_BLOCKS * PROMPT_SUM_BYTES // 4, dtype=torch.float32, device=device)
        self._are_there = torch.zeros(PROMPT_BLOCKS, dtype=torch.int32, device=device)

    def multiply(self, matrix: PackedMatrix, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return self.multiply_arranged(matrix, self.arrange(matrix, x), x.shape[0], bias)

    def arrange(self, matrix: PackedMatrix, x: torch.Tensor) -> torch.Tensor:
        """x [rows, inputs], in the model's order, as the matrix's product takes it."""
        rows, arranged = x.shape[0], self._room(matrix, x)
        threads = rows * matrix.inputs // ARRANGED_INPUTS
        self._kernels.arrange((-(-threads // ARRANGE_THREADS), 1, 1), ARRANGE_THREADS, x, matrix.order, arranged,
                              x.stride(0), rows, matrix.inputs // BLOCK)  # fmt: skip
        return arranged

    def arrange_normed(self, matrix: PackedMatrix, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        """The same through RMSNorm first."""
        arranged = self._room(matrix, x)
        self._kernels.arrange_normed((x.shape[0], 1, 1), NORM_THREADS, x, norm.weight, norm.places, arranged,
                                     x.stride(0), matrix.inputs // BLOCK, norm.eps)  # fmt: skip
        return arranged

    def arrange_gated(self, matrix: PackedMatrix, both: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
        """both [rows, 2 * inputs]: the same of silu of the first half times the second."""
        arranged = self._room(matrix, both)
        threads = both.shape[0] * matrix.inputs // GATED_INPUTS
        self._kernels.arrange_gated((-(-threads // ARRANGE_THREADS), 1, 1), ARRANGE_THREADS, both, places, arranged,
                                    both.shape[0], matrix.inputs // BLOCK)  # fmt: skip
        return arranged

    def _room(self, matrix: PackedMatrix, x: torch.Tensor) -> torch.Tensor:
        rows = -(-x.shape[0] // PROMPT_PIECE_ROWS) * PROMPT_PIECE_ROWS
        return torch.empty((rows, matrix.inputs), dtype=x.dtype, device=x.device)

    def multiply_arranged(
        self,
        matrix: PackedMatrix,
        arranged: torch.Tensor,
        rows: int,
        bias: torch.Tensor | None,
        added: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[rows, outputs], plus `added` of that shape."""
        tiles, blocks = matrix.codes.shape[:2]
        pieces = -(-rows // PROMPT_PIECE_ROWS)
        out = torch.empty((rows, matrix.outputs), dtype=arranged.dtype, device=arranged.device)
        product = FEW if pieces == 1 else MANY
        units = -(-matrix.outputs // product.outputs) * -(-pieces // product.pieces)
        grid, whole = share_out(units, blocks, self._kernels.multiprocessors)
        self._kernels.products[product](
            (grid, 1, 1), PRODUCT_THREADS, matrix.codes, matrix.scales, matrix.zeros, arranged, out, bias, added,
            self._sums, self._are_there, out.stride(0), rows, tiles, blocks, matrix.groups, whole,
        )  # fmt: skip
        return out


class WrittenOut:
    """A matrix is written out in half precision, in pieces of the room there is, for cuBLAS."""

    least_rows = MAX_CODE_ROWS + 1

    def __init__(self, kernels: DeckKernels, num_elements: int, dtype: torch.dtype, device: torch.device) -> None:
        self._kernels = kernels
        self._room = torch.empty(written_bytes(num_elements) // dtype.itemsize, dtype=dtype, device=device)

    def multiply(self, matrix: PackedMatrix, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        x = x if matrix.order is None else x.index_select(1, matrix.order)
        tiles, step = matrix.codes.shape[0], self._room.numel() // (matrix.inputs * TILE)
        if step >= tiles:
            out = x @ self._kernels.write_out(matrix, 0, tiles, self._room).t()
            return out if bias is None else out.add_(bias)
        out = torch.empty((x.shape[0], matrix.outputs), dtype=x.dtype, device=x.device)
        for begin in range(0, tiles, step):
            count = min(step, tiles - begin)
            weight = self._kernels.write_out(matrix, begin, count, self._room)
            torch.mm(x, weight.t(), out=out[:, begin * TILE : (begin + count) * TILE])
        return out if bias is None else out.add_(bias)


def many_rows_for(
    num_elements: int, dtype: torch.dtype, group_size: int, has_zeros: bool, device: torch.device
) -> ManyRows:
    """What multiplies the prompts of a model whose largest matrix has `num_elements`."""
    if takes_prompts_from_codes(torch.cuda.get_device_capability(device)):
        return FromCodes(prompt_kernels_for(dtype, group_size, has_zeros, device), device)
    return WrittenOut(kernels_for(dtype, group_size, has_zeros, device), num_elements, dtype, device)
