"""Tests of the kernel of cuda/narrow.cu on the default device: for a CPU and for a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from core.worker.kernels.fused_norm import FusedRmsNorm
from core.worker.kernels.narrow_products import MAX_NARROW_ROW, MAX_OUTPUTS, are_narrow, narrow_kernels_for
from core.worker.kernels.packed_prefill import rows_of, tile_rows_of

# Of values around 1: half precision rounds the normed rows and the results.
TOLERANCES = {torch.float16: 2e-3, torch.bfloat16: 2e-2}
EPS = 1e-5
# Rows, inputs, the outputs of each matrix: whole tiles and not, K blocks for one block of a cluster and for two, one
# matrix and two.
SHAPES = [(17, 320, (12, 12)), (32, 64, (16,)), (45, 1088, (48, 20)), (70, 192, (33, 1))]


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def far(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.float() - wanted.float()).norm() / wanted.float().norm())


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_rows_are_normed_and_multiplied(
    dtype: torch.dtype, shape: tuple[int, int, tuple[int, ...]], offset: float
) -> None:
    """In order, and as wgmma takes them. Rows beside them change nothing, and nothing beside
    the results is written."""
    rows, inputs, outputs = shape
    x, weight = (3 * torch.randn(rows, inputs)).to(dtype), (torch.rand(inputs) + 0.5).to(dtype)
    x[rows // 2] *= 100
    matrices = [torch.randn(one, inputs).to(dtype) for one in outputs]
    assert are_narrow(matrices)
    kernels = narrow_kernels_for(dtype, tile_rows_of(rows), x.device)
    wanted = torch.nn.functional.rms_norm(x.float(), (inputs,), eps=EPS) * (weight.float() + offset)
    products = wanted.to(dtype).float() @ torch.cat(matrices).float().t()

    def run(x: torch.Tensor, normed: torch.Tensor, is_swizzled: bool) -> torch.Tensor:
        wide = torch.full((len(x), sum(outputs) + 11), torch.nan).to(dtype)
        norm = FusedRmsNorm(weight, None, EPS, offset)
        kernels.norm_and_multiply(x, norm, matrices, normed, wide[:, 3 : 3 + sum(outputs)], is_swizzled)
        assert wide[:, :3].isnan().all() and wide[:, 3 + sum(outputs) :].isnan().all()
        return wide[:, 3 : 3 + sum(outputs)]

    plain = torch.full_like(x, torch.nan)
    got = run(x, plain, False)
    assert far(plain, wanted) < TOLERANCES[dtype] and far(got, products) < TOLERANCES[dtype]
    tile = tile_rows_of(rows)
    swizzled = torch.zeros(-(-rows // tile) * tile, inputs).to(dtype)
    assert torch.equal(run(x, swizzled, True), got)
    assert torch.equal(rows_of(swizzled, rows), plain)
    assert torch.equal(run(x[5:9], torch.empty_like(x[5:9]), False), got[5:9])


def test_more_outputs_or_longer_rows_than_a_launch_takes_are_not_narrow() -> None:
    assert are_narrow([torch.empty(MAX_OUTPUTS, MAX_NARROW_ROW, device="meta")])
    assert not are_narrow([torch.empty(MAX_OUTPUTS + 1, 64, device="meta")])
    assert not are_narrow([torch.empty(8, MAX_NARROW_ROW + 64, device="meta")])
    assert not are_narrow([torch.empty(8, 64, device="meta")] * 3)
    assert not are_narrow([])
