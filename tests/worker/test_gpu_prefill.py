"""On a GPU: products of many rows from a matrix's codes equal those with the dequantized matrix."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from core.common.paths import ROOT
from core.memory.kernels.llamadeck import has_fused_prefill
from core.worker.kernels import step_ops
from core.worker.kernels.decode_attention import DecodeKernels
from core.worker.kernels.fused_norm import FusedRmsNorm
from core.worker.kernels.packed_prefill import DequantThenGemm, FusedDequantGemm
from core.worker.kernels.packed_small_batch import SmallBatchKernels
from core.worker.kernels.packing import TILE, CodeFormat, PackedMatrix, invert_permutation
from tests.support.kv_pages import by_slot, paged
from tests.support.random_matrix import make_matrix

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
needs_tensor_cores = pytest.mark.skipif(
    not torch.cuda.is_available() or not has_fused_prefill(torch.cuda.get_device_capability()),
    reason="needs a GPU of compute capability 9.0",
)
DEVICE = torch.device("cuda:0")
# Of the result's length: the weights are rounded alike, so only the sums' order and the result's own rounding differ.
TOLERANCES = {torch.float16: 0.001, torch.bfloat16: 0.006}
# So long programs share the GPU; and how much longer they may take to begin and to end.
SHARED_S, PATIENCE_S = 20, 90
# Less than a block's outputs; not a multiple of them; more inputs than outputs. With 512 rows and 132 multiprocessors
# all of these are shared out; then one that is not, and one that is in part.
SHAPES = [(256, 96), (1024, 4112), (4096, 1296), (11008, 4096), (1024, 8192), (1024, 12288)]
# A piece that is not full, one that is, more than one, an odd number of them.
ROWS = [17, 32, 33, 64, 65, 128, 129, 256, 300, 512]
KINDS = [
    (torch.float16, CodeFormat(4, 128, False), False),
    (torch.bfloat16, CodeFormat(4, 128, False), True),
    (torch.float16, CodeFormat(4, 32, True), False),
    (torch.bfloat16, CodeFormat(4, 64, True), False),
    (torch.float16, CodeFormat(4, -1, True), True),
    (torch.float16, CodeFormat(8, 128, False), False),
    (torch.bfloat16, CodeFormat(8, 32, True), True),
]


@needs_tensor_cores
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "format", "has_permutation"), KINDS, ids=str)
def test_products_from_codes_equal_the_dequantized_matrix(
    dtype: torch.dtype, format: CodeFormat, has_permutation: bool, shape: tuple[int, int]
) -> None:
    random = torch.Generator(DEVICE).manual_seed(1)
    matrix = make_matrix(*shape, dtype, format, has_permutation, random)
    bias = torch.randn(shape[1], device=DEVICE, generator=random).to(dtype)
    dequantized = dequantize(matrix, SmallBatchKernels(dtype, format, DEVICE))
    from_codes = FusedDequantGemm(dtype, format, DEVICE)
    for rows in ROWS:
        # Twice, and otherwise: a product leaves its buffers as it found them.
        for added in (None, bias):
            x = torch.randn((rows, shape[0]), device=DEVICE, generator=random).to(dtype)
            wanted = multiply(matrix, x, dequantized, added)
            for tile in (None, *from_codes.tiles(matrix, rows)):
                assert far(from_codes.multiply(matrix, x, added, tile), wanted) < TOLERANCES[dtype]


@needs_tensor_cores
def test_programs_that_share_a_gpu_come_to_their_end() -> None:
    """A product of 32 rows came to no end, one of some 250,000, where two of its thread blocks shared a multiprocessor
    and other programs had the GPU now and then."""
    command = [sys.executable, "-m", "tests.support.shared_gpu", str(SHARED_S)]
    programs = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    try:
        assert [program.wait(SHARED_S + PATIENCE_S) for program in programs] == [0, 0, 0]
    finally:
        for program in programs:
            program.kill()
            program.wait()


@needs_tensor_cores
@pytest.mark.parametrize("rows", [20, 33, 300])
@pytest.mark.parametrize(("dtype", "format", "has_permutation"), KINDS, ids=str)
def test_rmsnorm_swiglu_and_residual_are_fused_right(
    dtype: torch.dtype, format: CodeFormat, has_permutation: bool, rows: int
) -> None:
    random = torch.Generator(DEVICE).manual_seed(1)
    matrix, gate_up = (make_matrix(1024, size, dtype, format, has_permutation, random) for size in (4112, 2048))
    inverse_permutation = None if matrix.permutation is None else invert_permutation(matrix.permutation)
    gemm = FusedDequantGemm(dtype, format, DEVICE)
    x, weight, added = (
        torch.randn(shape, device=DEVICE, generator=random).to(dtype) for shape in ((rows, 1024), (1024,), (rows, 4112))
    )
    normed = torch.nn.functional.rms_norm(x, (1024,), weight, 1e-5)
    swizzled = gemm.rmsnorm_rows(matrix, x, FusedRmsNorm(weight, inverse_permutation, 1e-5))
    wanted = gemm.multiply(matrix, normed, None)
    assert far(gemm.multiply_swizzled(matrix, swizzled, rows, None), wanted.float()) < 2 * TOLERANCES[dtype]
    gate, up = gemm.multiply(gate_up, x, None).chunk(2, -1)
    wanted = gemm.multiply(matrix, torch.nn.functional.silu(gate) * up, None) + added
    for tile in gemm.tiles(gate_up, rows):
        gated = gemm.multiply_gated(gate_up, gemm.permute_rows(gate_up, x), rows, None, inverse_permutation, tile)
        got = gemm.multiply_swizzled(matrix, gated, rows, None, added)
        assert far(got, wanted.float()) < 2 * TOLERANCES[dtype]


@needs_tensor_cores
@pytest.mark.parametrize(("heads", "dim"), [((8, 8), 128), ((16, 2), 128), ((7, 1), 64)])
def test_rope_is_applied_and_keys_and_values_are_stored(heads: tuple[int, int], dim: int) -> None:
    random = torch.Generator(DEVICE).manual_seed(1)
    (num_heads, num_kv_heads), tokens, slots = heads, 70, torch.ones(70, dtype=torch.long, device=DEVICE)
    qkv = torch.randn((tokens, (num_heads + 2 * num_kv_heads) * dim), device=DEVICE, generator=random).half()
    angle = torch.rand((1, tokens, dim // 2), device=DEVICE, generator=random).repeat(1, 1, 2) * 6
    cos, sin = angle.cos().half(), angle.sin().half()
    columns = torch.where(torch.arange(tokens, device=DEVICE) < 60, torch.arange(tokens, device=DEVICE) + 5, -1)[None]
    empty = torch.zeros((2, 2, num_kv_heads, 81, dim), dtype=torch.float16, device=DEVICE)
    caches = [paged(*empty) for _ in range(2)]
    by_head = qkv.clone().view(tokens, -1, dim).transpose(0, 1)[None]
    query, key = step_ops.apply_rope(by_head[:, :num_heads], by_head[:, num_heads:-num_kv_heads], cos, sin)
    step_ops.store_kv(key, by_head[:, -num_kv_heads:], caches[0], slots[:1], columns)
    kernels = DecodeKernels(torch.float16, heads, dim, 2, DEVICE)
    got = kernels.apply_rope_and_store_kv(qkv, (cos, sin), caches[1], slots, columns)
    assert far(got, query.float()) < TOLERANCES[torch.float16]
    stored, wanted = (torch.stack(by_slot(cache)) for cache in reversed(caches))
    assert far(stored, wanted.float()) < TOLERANCES[torch.float16]


@pytest.mark.parametrize("outputs_at_once", [64, 1296])
@pytest.mark.parametrize(("dtype", "format", "has_permutation"), KINDS, ids=str)
def test_a_matrix_that_is_dequantized_in_parts_or_whole(
    dtype: torch.dtype, format: CodeFormat, has_permutation: bool, outputs_at_once: int
) -> None:
    random = torch.Generator(DEVICE).manual_seed(1)
    matrix = make_matrix(4096, 1296, dtype, format, has_permutation, random)
    bias = torch.randn(1296, device=DEVICE, generator=random).to(dtype)
    kernels = SmallBatchKernels(dtype, format, DEVICE)
    backend = DequantThenGemm(kernels, 4096 * outputs_at_once, dtype, DEVICE)
    for added in (None, bias):
        x = torch.randn((300, 4096), device=DEVICE, generator=random).to(dtype)
        wanted = multiply(matrix, x, dequantize(matrix, kernels), added)
        # A bias is added to what is rounded already.
        assert far(backend.multiply(matrix, x, added), wanted) < 2 * TOLERANCES[dtype]


def dequantize(matrix: PackedMatrix, kernels: SmallBatchKernels) -> torch.Tensor:
    room = torch.empty(matrix.outputs * matrix.inputs, dtype=matrix.scales.dtype, device=DEVICE)
    return kernels.dequantize(matrix, 0, matrix.outputs // TILE, room).float()


def multiply(
    matrix: PackedMatrix, x: torch.Tensor, dequantized: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    out = (x if matrix.permutation is None else x.index_select(1, matrix.permutation)).float() @ dequantized.t()
    return out if bias is None else out + bias.float()


def far(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.float() - wanted).norm() / wanted.norm())
