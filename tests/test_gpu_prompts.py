"""On a GPU: many rows times a matrix from its codes are what they are times the matrix written out."""

from __future__ import annotations

import pytest
import torch

from core.engine.deck import DeckKernels
from core.engine.packing import BLOCK, TILE, PackedMatrix
from core.engine.plan import takes_prompts_from_codes
from core.engine.prompts import FromCodes, PromptKernels, WrittenOut

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
needs_tensor_cores = pytest.mark.skipif(
    not torch.cuda.is_available() or not takes_prompts_from_codes(torch.cuda.get_device_capability()),
    reason="needs a GPU of compute capability 9.0",
)
DEVICE = torch.device("cuda:0")
# Of the result's length: the weights are rounded alike, so only the sums' order and the result's own rounding differ.
TOLERANCES = {torch.float16: 0.001, torch.bfloat16: 0.006}
# Less than a block's outputs; not a multiple of them; more inputs than outputs. With 512 rows and 132 multiprocessors
# all of these are shared out; then one that is not, and one that is in part.
SHAPES = [(256, 96), (1024, 4112), (4096, 1296), (11008, 4096), (1024, 8192), (1024, 12288)]
# A piece that is not full, one that is, more than one, an odd number of them.
ROWS = [33, 64, 128, 129, 256, 300, 512]
KINDS = [
    (torch.float16, 128, False, False),
    (torch.bfloat16, 128, False, True),
    (torch.float16, 32, True, False),
    (torch.bfloat16, 64, True, False),
    (torch.float16, -1, True, True),
]


@needs_tensor_cores
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "group_size", "has_zeros", "has_order"), KINDS)
def test_rows_from_codes_are_those_of_the_matrix_written_out(
    dtype: torch.dtype, group_size: int, has_zeros: bool, has_order: bool, shape: tuple[int, int]
) -> None:
    random = torch.Generator(DEVICE).manual_seed(1)
    matrix = make_matrix(*shape, dtype, group_size, has_zeros, has_order, random)
    bias = torch.randn(shape[1], device=DEVICE, generator=random).to(dtype)
    written = write_out(matrix, DeckKernels(dtype, group_size, has_zeros, DEVICE))
    from_codes = FromCodes(PromptKernels(dtype, group_size, has_zeros, DEVICE), DEVICE)
    for rows in ROWS:
        # Twice, and otherwise: a product leaves its room as it found it.
        for added in (None, bias):
            x = torch.randn((rows, shape[0]), device=DEVICE, generator=random).to(dtype)
            wanted = multiply(matrix, x, written, added)
            assert far(from_codes.multiply(matrix, x, added), wanted) < TOLERANCES[dtype]


@pytest.mark.parametrize("outputs_at_once", [64, 1296])
@pytest.mark.parametrize(("dtype", "group_size", "has_zeros", "has_order"), KINDS)
def test_rows_of_a_matrix_that_is_written_out_piece_by_piece_or_whole(
    dtype: torch.dtype, group_size: int, has_zeros: bool, has_order: bool, outputs_at_once: int
) -> None:
    random = torch.Generator(DEVICE).manual_seed(1)
    matrix = make_matrix(4096, 1296, dtype, group_size, has_zeros, has_order, random)
    bias = torch.randn(1296, device=DEVICE, generator=random).to(dtype)
    kernels = DeckKernels(dtype, group_size, has_zeros, DEVICE)
    written_out = WrittenOut(kernels, 4096 * outputs_at_once, dtype, DEVICE)
    for added in (None, bias):
        x = torch.randn((300, 4096), device=DEVICE, generator=random).to(dtype)
        wanted = multiply(matrix, x, write_out(matrix, kernels), added)
        # A bias is added to what is rounded already.
        assert far(written_out.multiply(matrix, x, added), wanted) < 2 * TOLERANCES[dtype]


def write_out(matrix: PackedMatrix, kernels: DeckKernels) -> torch.Tensor:
    room = torch.empty(matrix.outputs * matrix.inputs, dtype=matrix.scales.dtype, device=DEVICE)
    return kernels.write_out(matrix, 0, matrix.outputs // TILE, room).float()


def multiply(matrix: PackedMatrix, x: torch.Tensor, written: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    out = (x if matrix.order is None else x.index_select(1, matrix.order)).float() @ written.t()
    return out if bias is None else out + bias.float()


def make_matrix(
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    group_size: int,
    has_zeros: bool,
    has_order: bool,
    random: torch.Generator,
) -> PackedMatrix:
    tiles, groups = outputs // TILE, 1 if group_size < 0 else inputs // group_size
    codes = torch.randint(-(2**31), 2**31, (tiles, inputs // BLOCK, 32, 4), device=DEVICE, generator=random)
    scales = (torch.rand((tiles, groups, 8, 2), device=DEVICE, generator=random) + 0.5) / 100
    zeros = torch.randint(0, 16, (tiles, groups, 8, 2), device=DEVICE, generator=random).to(dtype)
    order = torch.randperm(inputs, device=DEVICE, generator=random).to(torch.int32)
    return PackedMatrix(
        codes.to(torch.int32), scales.to(dtype), zeros if has_zeros else None, order if has_order else None
    )


def far(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.float() - wanted).norm() / wanted.norm())
