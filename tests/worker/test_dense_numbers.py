"""The numbers of products of few rows with half-precision matrices, by the kernels' sources themselves run on a CPU."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from core.worker.decode import mixer_matrices
from core.worker.decode.fused_modules import FusedNorm
from core.worker.decode.mixer_matrices import InputMatrices
from core.worker.kernels import dense_small_batch
from core.worker.kernels.dense_small_batch import DenseKernels
from core.worker.kernels.fused_norm import FusedRmsNorm
from tests.support.ptx_on_cpu import kernels_on_cpu

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
CPU = torch.device("cpu")
# A result's own rounding, of values around 1.
TOLERANCES = {torch.float16: 0.002, torch.bfloat16: 0.015}
# Fewer K blocks than a block has warps, and more; the second matrix ends within a tile.
INPUTS, OUTPUTS = 640, (48, 20, 32)


@pytest.fixture(scope="module", autouse=True)
def on_cpu() -> Iterator[None]:
    with kernels_on_cpu():
        yield


def far(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.float() - wanted).abs().max() / wanted.std())


@pytest.fixture(params=[False, True], ids=["parts in order", "parts in turns"])
def in_turns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels whose parts of the inputs follow one another, or take K blocks by turns."""
    monkeypatch.setattr(dense_small_batch, "IN_TURNS", request.param)
    dense_small_batch.module_for.cache_clear()
    yield
    dense_small_batch.module_for.cache_clear()


@pytest.mark.usefixtures("in_turns")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_rows_come_out_the_same_beside_any_others_normed_or_added_to_a_residual(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    random = torch.Generator().manual_seed(3)
    kernels = DenseKernels(dtype, CPU)
    weights = [(torch.randn((size, INPUTS), generator=random) / INPUTS**0.5).to(dtype) for size in OUTPUTS]
    x, residual = (torch.randn((100, size), generator=random).to(dtype) for size in (INPUTS, sum(OUTPUTS)))
    weight = (torch.rand(INPUTS, generator=random) + 0.5).to(dtype)
    dense = torch.cat(weights).float().t()
    together = kernels.multiply(weights, x)
    assert far(together, x.float() @ dense) < TOLERANCES[dtype] * 4
    normed = torch.nn.functional.rms_norm(x.float(), (INPUTS,), eps=1e-5).to(dtype) * weight
    norm = FusedRmsNorm(weight, None, 1e-5)
    together_normed = kernels.multiply(weights, x, norm=norm)
    assert far(together_normed, normed.float() @ dense) < TOLERANCES[dtype] * 4
    for rows in (1, 9, 33, 97):
        assert torch.equal(kernels.multiply(weights, x[:rows]), together[:rows])
        assert torch.equal(kernels.multiply(weights, x[:rows], norm=norm), together_normed[:rows])
    # Where blocks are many, a kernel before them norms.
    monkeypatch.setattr(dense_small_batch, "MOST_NORMED_INPUTS", 0)
    assert torch.equal(kernels.multiply(weights, x[:1], norm=norm), together_normed[:1])
    less_one = FusedRmsNorm((weight.float() - 1).to(dtype), None, 1e-5, 1.0)
    assert far(kernels.multiply(weights, x[:1], norm=less_one), normed[:1].float() @ dense) < TOLERANCES[dtype] * 8
    added = kernels.multiply(weights, x, residual)
    assert torch.equal(added, (together.float() + residual.float()).to(dtype))
    assert torch.equal(kernels.multiply(weights[:1], x[:1], residual[:1]), added[:1, : OUTPUTS[0]])


def test_a_row_of_any_number_of_k_blocks_is_normed() -> None:
    """Sums of groups of 128 inputs once ran over the end of their tensor where inputs are an odd multiple of 64."""
    kernels, x, weight = DenseKernels(torch.float16, CPU), torch.randn(3, 192).half(), torch.randn(20, 192).half()
    norm = FusedRmsNorm(torch.ones(192).half(), None, 1e-5)
    wanted = torch.nn.functional.rms_norm(x.float(), (192,), eps=1e-5) @ weight.float().t()
    assert far(kernels.multiply([weight], x, norm=norm), wanted) < TOLERANCES[torch.float16] * 4


def test_the_result_goes_into_a_part_of_a_larger_tensor() -> None:
    kernels, x = DenseKernels(torch.float16, CPU), torch.randn(3, 64).half()
    weight, out = torch.randn(20, 64).half(), torch.zeros(3, 100).half()
    kernels.multiply([weight], x, out=out[:, 40:60])
    assert torch.equal(out[:, 40:60], kernels.multiply([weight], x))
    assert not out[:, :40].any() and not out[:, 60:].any()


def test_matrices_before_a_mixer_that_cublas_takes_and_those_it_does_not_lie_side_by_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """cuBLAS once took the two of 48 outputs as well, which was a tenth of a step of Qwen3.5-27B with 32 chats."""
    linears = [torch.nn.Linear(INPUTS, size, bias=False).half() for size in (128, 96, 24, 16)]
    matrices = InputMatrices((), tuple(linears), {})
    norm = FusedNorm(torch.nn.Parameter(torch.rand(INPUTS).half() + 0.5), 1e-6)
    monkeypatch.setattr(FusedNorm, "forward", lambda self, x: plain_norm(x, self.weight))
    x = torch.randn(20, INPUTS).half()
    wanted = plain_norm(x, norm.weight).float() @ torch.cat([one.weight for one in linears]).float().t()
    for least in (1000, 100, 50, 0):
        monkeypatch.setattr(mixer_matrices, "are_many", partial(has_outputs, least))
        with torch.inference_mode():
            assert far(matrices.decode(x, norm), wanted) < TOLERANCES[torch.float16] * 8


def has_outputs(least: int, hidden: torch.Tensor, weight: torch.Tensor) -> bool:
    return len(hidden) == 20 and weight.shape[0] >= least


def plain_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    normed = torch.nn.functional.rms_norm(x.float(), x.shape[-1:], eps=1e-6)
    return normed.half() * weight
