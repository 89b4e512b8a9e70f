"""The numbers of the engine's own kernels over quantized matrices, by the sources themselves run on a CPU."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch

from core.checkpoint.quantization import MatrixFormat
from core.common.errors import EngineError
from core.memory.kernels.llamadeck import LLAMADECK
from core.worker.kernels import packed_small_batch
from core.worker.kernels.fused_norm import FusedRmsNorm
from core.worker.kernels.low_rank import LowRankMatrices, LowRankRows
from core.worker.kernels.packed_prefill import USUAL_ROW, FusedDequantGemm, rows_of
from core.worker.kernels.packed_small_batch import HEAD_ROWS, MAX_SMALL_BATCH, PackedLinear, SmallBatchKernels
from core.worker.kernels.packing import TILE, CodeFormat, PackedMatrix, invert_permutation, pack_codes, tile_scales
from core.worker.model.kernel_check import check_kernel
from tests.support import ptx_on_cpu
from tests.support.ptx_on_cpu import kernels_on_cpu

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

CPU = torch.device("cpu")
# A result's own rounding, and of bfloat16 those of its scales.
TOLERANCES = {torch.float16: 0.002, torch.bfloat16: 0.015}


@pytest.fixture(autouse=True)
def on_cpu() -> Iterator[None]:
    with kernels_on_cpu():
        yield


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)], ids=str)
@pytest.mark.parametrize(
    ("format", "dtype"),
    [
        (MatrixFormat(4, 128, True, False, "gptq"), torch.float16),
        (MatrixFormat(8, 128, True, True, "gptq"), torch.float16),
        (MatrixFormat(8, 32, False, False, "gptq_v2"), torch.bfloat16),
        (MatrixFormat(8, -1, False, False, "gptq"), torch.float16),
    ],
    ids=lambda one: one.label if isinstance(one, MatrixFormat) else str(one),
)
def test_the_check_of_a_load_passes(
    format: MatrixFormat, dtype: torch.dtype, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing, products of few rows, and of many: from the codes on 9.0, else dequantized first."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    check_kernel(LLAMADECK, format, dtype, CPU)


def test_a_kernel_that_reads_codes_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a load takes another one, and never answers nonsense."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))

    def read_source(*names: str, **made: object) -> str:
        source = read(*names, **made)
        assert source.count("0x4341 : 0x4240") == 2
        return source.replace("0x4341 : 0x4240", "0x4240 : 0x4341")

    read = packed_small_batch.read_source
    monkeypatch.setattr(packed_small_batch, "read_source", read_source)
    with pytest.raises(EngineError) as caught:
        check_kernel(LLAMADECK, MatrixFormat(8, 128, True, True, "gptq"), torch.float16, CPU)
    assert caught.value.key == "kernel_wrong"


INPUTS, OUTPUTS = 512, 96
KINDS = [
    (CodeFormat(8, 128, False), torch.float16),
    (CodeFormat(8, 32, True), torch.bfloat16),
    (CodeFormat(4, 128, True), torch.float16),
]


def make_matrix(
    format: CodeFormat, dtype: torch.dtype, inputs: int = INPUTS, outputs: int = OUTPUTS
) -> tuple[PackedMatrix, torch.Tensor]:
    """A matrix in act-order, and dequantized in the order of the model's inputs, [inputs, outputs]."""
    random = torch.Generator().manual_seed(2)
    group_size = inputs if format.group_size < 0 else format.group_size
    codes = torch.randint(0, 2**format.bits, (inputs, outputs), generator=random)
    zeros = torch.full((inputs // group_size, outputs), 2 ** (format.bits - 1))
    if format.has_zeros:
        zeros = torch.randint(0, 2**format.bits + 1, zeros.shape, generator=random)
    scales = ((torch.rand(zeros.shape, generator=random) + 0.5) / 2**format.bits).to(dtype)
    permutation = torch.randperm(inputs, generator=random).int()
    tiled_zeros = tile_scales(zeros, dtype) if format.has_zeros else None
    matrix = PackedMatrix(pack_codes(codes, format.bits), tile_scales(scales, dtype), tiled_zeros, permutation)
    dense = (codes - zeros.repeat_interleave(group_size, 0)) * scales.float().repeat_interleave(group_size, 0)
    return matrix, dense[invert_permutation(permutation).long()]


def far(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.float() - wanted).abs().max() / wanted.std())


@pytest.mark.parametrize(("format", "dtype"), KINDS, ids=str)
def test_rows_come_out_the_same_beside_any_others_and_through_every_epilogue(
    format: CodeFormat, dtype: torch.dtype
) -> None:
    random = torch.Generator().manual_seed(3)
    matrix, dense = make_matrix(format, dtype)
    kernels, order = SmallBatchKernels(dtype, format, CPU), matrix.permutation
    assert order is not None
    x, added = (torch.randn((20, size), generator=random).to(dtype) for size in (INPUTS, OUTPUTS))
    permuted = x[:, order.long()]
    together = kernels.multiply(matrix, permuted)
    assert far(together, x.float() @ dense) < TOLERANCES[dtype] * 4
    for rows in (1, 2, 8, 9):
        assert torch.equal(kernels.multiply(matrix, permuted[:rows]), together[:rows])
    summed = kernels.multiply(matrix, permuted, "residual", residual=added)
    assert torch.equal(summed, (together.float() + added.float()).to(dtype))
    gate, up = together.float().chunk(2, -1)
    wanted = torch.nn.functional.silu(gate).to(dtype).float() * up
    assert far(kernels.multiply(matrix, permuted, "swiglu"), wanted) < TOLERANCES[dtype] * 4
    weight = (torch.rand(INPUTS, generator=random) + 0.5).to(dtype)
    normed = torch.nn.functional.rms_norm(x[:1].float(), (INPUTS,), eps=1e-5).to(dtype).float() * weight.float()
    got = kernels.multiply(matrix, x[:1], norm=FusedRmsNorm(weight, invert_permutation(order), 1e-5))
    assert far(got, normed @ dense) < TOLERANCES[dtype] * 4
    normed = torch.nn.functional.rms_norm(x[:1].float(), (INPUTS,), eps=1e-5) * (1 + weight.float())
    got = kernels.multiply(matrix, x[:1], norm=FusedRmsNorm(weight, invert_permutation(order), 1e-5, 1.0))
    assert far(got, normed.to(dtype).float() @ dense) < TOLERANCES[dtype] * 4


class NoPrompts:
    """Of a prompt's rows there are none."""

    min_rows = HEAD_ROWS[-1] + 1

    def multiply(self, matrix: PackedMatrix, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        raise AssertionError("rows of a token each are no prompt's")


@pytest.mark.parametrize("rows", [65, MAX_SMALL_BATCH])
def test_a_step_of_many_chats_gives_each_what_it_has_alone(rows: int) -> None:
    (format, dtype), random = KINDS[2], torch.Generator().manual_seed(6)
    matrix, dense = make_matrix(format, dtype)
    bias = torch.randn(OUTPUTS, generator=random).to(dtype)
    linear = PackedLinear(matrix, bias, SmallBatchKernels(dtype, format, CPU), NoPrompts())
    x = torch.randn((rows, 1, INPUTS), generator=random).to(dtype)
    together = linear(x)
    assert far(together[:, 0], x[:, 0].float() @ dense + bias.float()) < TOLERANCES[dtype] * 4
    for row in (0, 33, rows - 1):
        assert torch.equal(linear(x[row : row + 1])[0], together[row])


@pytest.mark.parametrize("rank", [8, 3])
def test_a_product_adds_each_rows_own_adapter_before_its_epilogue(rank: int) -> None:
    """Rows of two adapters and of none; of more rows than one launch takes; of three matrices that are one."""
    (format, dtype), random = KINDS[0], torch.Generator().manual_seed(5)
    matrix, _ = make_matrix(format, dtype)
    kernels, num_rows, parts = SmallBatchKernels(dtype, format, CPU), 35, (48, 16, 32)
    x, residual = (torch.randn((num_rows, size), generator=random).to(dtype) for size in (INPUTS, OUTPUTS))
    b = [torch.randn((size, 3 * rank), generator=random).to(dtype) for size in parts]
    slots, places = torch.arange(num_rows) % 5, torch.tensor([2, -1, 0, 2, -1], dtype=torch.int32)
    t = torch.randn((num_rows, len(parts), rank), generator=random)
    low = LowRankRows(LowRankMatrices((), tuple(b), rank), t, slots, places)
    plain = kernels.multiply(matrix, x)
    added = torch.zeros((num_rows, OUTPUTS))
    for row, place in enumerate(places[slots].tolist()):
        if place >= 0:
            own = [one[:, place * rank : (place + 1) * rank].float() for one in b]
            added[row] = torch.cat([of_b @ of_t for of_b, of_t in zip(own, t[row], strict=True)])
    got = kernels.multiply(matrix, x, low=low)
    assert far(got, plain.float() + added) < TOLERANCES[dtype] * 4
    without = places[slots] < 0
    assert torch.equal(got[without], plain[without])
    for row in (0, 1, 34):
        one = LowRankRows(low.matrices, t[row : row + 1], slots[row : row + 1], places)
        assert torch.equal(kernels.multiply(matrix, x[row : row + 1], low=one)[0], got[row])
    summed = kernels.multiply(matrix, x, "residual", residual=residual, low=low)
    assert torch.equal(summed, (got.float() + residual.float()).to(dtype))
    gate, up = got.float().chunk(2, -1)
    wanted = torch.nn.functional.silu(gate).to(dtype).float() * up
    assert far(kernels.multiply(matrix, x, "swiglu", low=low), wanted) < TOLERANCES[dtype] * 4


@pytest.mark.parametrize("inputs", [INPUTS, INPUTS - 64])
@pytest.mark.parametrize(("format", "dtype"), KINDS, ids=str)
def test_many_rows_are_multiplied_from_codes(format: CodeFormat, dtype: torch.dtype, inputs: int) -> None:
    """Thread blocks share the K blocks of a unit, and the last adds the others' sums. Of an odd number of K blocks none
    takes two at a time."""
    if format.group_size > 0 and inputs % format.group_size:
        pytest.skip("no whole groups")
    random = torch.Generator().manual_seed(4)
    matrix, dense = make_matrix(format, dtype, inputs)
    gemm = FusedDequantGemm(dtype, format, CPU)
    bias = torch.randn(OUTPUTS, generator=random).to(dtype)
    for rows in (20, 40, 70, 130):
        x = torch.randn((rows, inputs), generator=random).to(dtype)
        product = gemm.multiply(matrix, x, bias)
        for tile in gemm.tiles(matrix, rows):
            assert far(gemm.multiply(matrix, x, bias, tile), x.float() @ dense + bias.float()) < TOLERANCES[dtype] * 4
        # The same as a part of longer rows.
        wide = torch.zeros((rows, OUTPUTS + 24), dtype=dtype)
        gemm.multiply_swizzled(matrix, gemm.permute_rows(matrix, x), rows, bias, out=wide[:, 8 : 8 + OUTPUTS])
        assert torch.equal(wide[:, 8 : 8 + OUTPUTS], product)
        assert not wide[:, :8].any() and not wide[:, 8 + OUTPUTS :].any()


@pytest.mark.parametrize(("format", "dtype"), KINDS, ids=str)
def test_gate_and_up_of_many_rows_become_the_rows_of_down(format: CodeFormat, dtype: torch.dtype) -> None:
    """In one product, by each tile that may be chosen; the last one's tiles of gate and up are not whole."""
    size, random = 320 if format.group_size == 32 else 384, torch.Generator().manual_seed(7)
    (gate_up, dense), (down, dense_down) = (
        make_matrix(format, dtype, *shape) for shape in ((INPUTS, 2 * size), (size, OUTPUTS))
    )
    gemm, bias = FusedDequantGemm(dtype, format, CPU), torch.randn(2 * size, generator=random).to(dtype)
    assert down.permutation is not None
    inverse = invert_permutation(down.permutation)
    for rows in (20, 40, 70, 130):
        x = torch.randn((rows, INPUTS), generator=random).to(dtype)
        normed = gemm.permute_rows(gate_up, x)
        gate, up = (x.float() @ dense + bias.float()).to(dtype).float().chunk(2, -1)
        gated = (torch.nn.functional.silu(gate).to(dtype).float() * up).to(dtype)
        for tile in gemm.tiles(gate_up, rows):
            got = gemm.multiply_gated(gate_up, normed, rows, bias, inverse, tile)
            product = gemm.multiply_swizzled(down, got, rows, None)
            assert far(product, gated.float() @ dense_down) < TOLERANCES[dtype] * 8


@pytest.mark.parametrize("most_blocks", [1, 3])
def test_thread_blocks_that_share_a_unit_do_not_need_to_run_at_once(
    monkeypatch: pytest.MonkeyPatch, most_blocks: int
) -> None:
    """Each once waited for later ones. A GPU may have no room for those before the ones that wait are done: a step of
    32 chats of Qwen3.5-27B came to no end on an H200."""
    (format, dtype), random = KINDS[0], torch.Generator().manual_seed(6)
    matrix, _ = make_matrix(format, dtype)
    gemm = FusedDequantGemm(dtype, format, CPU)
    for rows in (20, 40, 130):
        x = torch.randn((rows, INPUTS), generator=random).to(dtype)
        wanted = gemm.multiply(matrix, x, None)
        with monkeypatch.context() as patch:
            patch.setattr(ptx_on_cpu, "MOST_BLOCKS", most_blocks)
            assert torch.equal(gemm.multiply(matrix, x, None), wanted)


@pytest.mark.parametrize(("format", "dtype"), KINDS, ids=str)
def test_a_part_of_a_matrix_is_dequantized(format: CodeFormat, dtype: torch.dtype) -> None:
    matrix, dense = make_matrix(format, dtype)
    assert matrix.permutation is not None
    got = SmallBatchKernels(dtype, format, CPU).dequantize(matrix, 2, 3, torch.empty(3 * TILE * INPUTS, dtype=dtype))
    wanted = dense[matrix.permutation.long(), 2 * TILE : 5 * TILE].t().to(dtype)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("is_permuted", [False, True])
@pytest.mark.parametrize(("inputs", "offset"), [(INPUTS, 1.0), (USUAL_ROW + 128, 0.0)])
def test_rows_are_normed_as_a_product_takes_them_and_as_they_are(inputs: int, offset: float, is_permuted: bool) -> None:
    """Rows of which a thread keeps more go through another kernel."""
    (format, dtype), random = KINDS[0], torch.Generator().manual_seed(9)
    matrix, _ = make_matrix(format, dtype, inputs, 16)
    assert matrix.permutation is not None
    order = matrix.permutation.long() if is_permuted else torch.arange(inputs)
    gemm, inverse = (
        FusedDequantGemm(dtype, format, CPU),
        invert_permutation(matrix.permutation) if is_permuted else None,
    )
    weight = (torch.rand(inputs, generator=random) + 0.5).to(dtype)
    for rows in (3, 40):
        x = torch.randn((rows, inputs), generator=random).to(dtype)
        plain = torch.zeros((rows + 1, inputs), dtype=dtype)
        swizzled = gemm.rmsnorm_rows(matrix, x, FusedRmsNorm(weight, inverse, 1e-5, offset), plain)
        wanted = torch.nn.functional.rms_norm(x.float(), (inputs,), eps=1e-5) * (weight.float() + offset)
        assert far(plain[:rows], wanted) < 2 * TOLERANCES[dtype] and not plain[rows:].any()
        assert torch.equal(rows_of(swizzled, rows), plain[:rows, order])
        again = gemm.rmsnorm_rows(matrix, x, FusedRmsNorm(weight, inverse, 1e-5, offset))
        assert torch.equal(rows_of(again, rows), plain[:rows, order])
