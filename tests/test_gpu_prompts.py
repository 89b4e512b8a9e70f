"""On a GPU: many rows times a matrix from its codes are what they are times the matrix written out."""

from __future__ import annotations

import pytest
import torch

from core.engine.deck import DeckKernels
from core.engine.packing import BLOCK, TILE, PackedMatrix
from core.engine.prompts import FromCodes, PromptKernels, WrittenOut

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="needs a GPU of compute capability 9.0",
    ),
]
# Of the result's length: the weights are rounded alike, so only the sums' order and the result's own rounding differ.
TOLERANCES = {torch.float16: 0.001, torch.bfloat16: 0.006}
# Less than a block's outputs; not a multiple of them; one that is shared out; more inputs than outputs.
SHAPES = [(256, 96), (1024, 4112), (4096, 1296), (11008, 4096)]
# A piece that is not full, one that is, more than one, an odd number of them.
ROWS = [33, 64, 128, 129, 256, 300, 512]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "group_size", "has_zeros", "has_order"),
    [
        (torch.float16, 128, False, False),
        (torch.bfloat16, 128, False, True),
        (torch.float16, 32, True, False),
        (torch.bfloat16, 64, True, False),
        (torch.float16, -1, True, True),
    ],
)
def test_rows_from_codes_are_those_of_the_matrix_written_out(
    dtype: torch.dtype, group_size: int, has_zeros: bool, has_order: bool, shape: tuple[int, int]
) -> None:
    device = torch.device("cuda:0")
    random = torch.Generator(device).manual_seed(1)
    matrix = make_matrix(*shape, dtype, group_size, has_zeros, has_order, random)
    bias = torch.randn(shape[1], device=device, generator=random).to(dtype)
    from_codes = FromCodes(PromptKernels(dtype, group_size, has_zeros, device), device)
    kernels = DeckKernels(dtype, group_size, has_zeros, device)
    written = kernels.write_out(
        matrix, 0, shape[1] // TILE, torch.empty(shape[0] * shape[1], dtype=dtype, device=device)
    )
    in_pieces = WrittenOut(kernels, shape[0] * 64, dtype, device)
    for rows in ROWS:
        x = torch.randn((rows, shape[0]), device=device, generator=random).to(dtype)
        ordered = x if matrix.order is None else x.index_select(1, matrix.order)
        wanted = ordered.float() @ written.float().t()
        # Twice: a product leaves its room as it found it.
        for got in (from_codes.multiply(matrix, x, None), from_codes.multiply(matrix, x, None)):
            assert far(got, wanted) < TOLERANCES[dtype]
        assert far(from_codes.multiply(matrix, x, bias), wanted + bias.float()) < TOLERANCES[dtype]
        assert far(in_pieces.multiply(matrix, x, bias), wanted + bias.float()) < 2 * TOLERANCES[dtype]


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
    device = random.device
    codes = torch.randint(-(2**31), 2**31, (tiles, inputs // BLOCK, 32, 4), device=device, generator=random)
    scales = (torch.rand((tiles, groups, 8, 2), device=device, generator=random) + 0.5) / 100
    zeros = torch.randint(0, 16, (tiles, groups, 8, 2), device=device, generator=random).to(dtype)
    order = torch.randperm(inputs, device=device, generator=random).to(torch.int32)
    return PackedMatrix(
        codes.to(torch.int32), scales.to(dtype), zeros if has_zeros else None, order if has_order else None
    )


def far(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.float() - wanted).norm() / wanted.norm())
