"""Tests of the kernels of LoRA adapters, held against torch on the default device: for a CPU and for a GPU."""

from __future__ import annotations

import pytest
import torch

from core.worker.kernels.fused_norm import FusedRmsNorm
from core.worker.kernels.low_rank import NO_PLACE, LowRankMatrices, LowRankRows, SlotAdapters, low_rank_kernels_for
from core.worker.model.adapters import computes_as_torch

TYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
# By slot: the second adapter, none, the first of other strength, the second again.
PLACES, WEIGHTS, NUM_PLACES = (1, NO_PLACE, 0, 1), (1.0, 1.0, 0.5, 1.0), 3
OUTPUTS = (40, 264)


def make_low_rank(dtype: torch.dtype, inputs: int, rank: int) -> LowRankMatrices:
    torch.manual_seed(1)
    columns = NUM_PLACES * rank
    a = tuple((torch.randn(columns, inputs) / inputs**0.5).to(dtype) for _ in OUTPUTS)
    return LowRankMatrices(a, tuple(torch.randn(size, columns).to(dtype) for size in OUTPUTS), rank)


def of_slots() -> SlotAdapters:
    return SlotAdapters(torch.tensor(PLACES, dtype=torch.int32), torch.tensor(WEIGHTS))


def plain_low(x: torch.Tensor, matrices: LowRankMatrices, slots: list[int]) -> torch.Tensor:
    """[rows, parts, rank], 0 for rows without an adapter."""
    low = torch.zeros(len(slots), len(OUTPUTS), matrices.rank)
    for row, slot in enumerate(slots):
        if (place := PLACES[slot]) >= 0:
            for part, a in enumerate(matrices.a):
                own = a[place * matrices.rank : (place + 1) * matrices.rank]
                low[row, part] = WEIGHTS[slot] * (own.float() @ x[row].float())
    return low


def down(x: torch.Tensor, matrices: LowRankMatrices, slots: list[int], **more: object) -> LowRankRows:
    kernels = low_rank_kernels_for(x.dtype, x.device)
    return kernels.down(x, matrices, torch.tensor(slots), of_slots(), **more)  # type: ignore[arg-type]


def used(low: LowRankRows, slots: list[int]) -> torch.Tensor:
    """What is there; rows without an adapter are not written."""
    return low.t[[row for row, slot in enumerate(slots) if PLACES[slot] >= 0]]


@TYPES
@pytest.mark.parametrize(("inputs", "rank"), [(64, 16), (8256, 3)], ids=["few inputs", "many inputs"])
def test_rows_go_down_by_their_own_adapters(dtype: torch.dtype, inputs: int, rank: int) -> None:
    matrices, slots = make_low_rank(dtype, inputs, rank), [3, 1, 2, 0]
    x = torch.randn(len(slots), inputs).to(dtype)
    low, wanted = down(x, matrices, slots), plain_low(x, matrices, slots)
    assert torch.allclose(used(low, slots), wanted[[0, 2, 3]], atol=1e-3)
    order = torch.randperm(inputs)
    permuted = torch.empty_like(x)
    permuted[:, order] = x
    assert torch.equal(used(down(permuted, matrices, slots, x_places=order.int()), slots), used(low, slots))


@TYPES
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rows_are_normed_on_their_way_down(dtype: torch.dtype, offset: float) -> None:
    matrices, slots = make_low_rank(dtype, 6720, 8), [0, 2]
    x, weight = (3 * torch.randn(2, 6720)).to(dtype), torch.rand(6720).to(dtype)
    normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)
    normed = (normed * (1 + weight.float()) if offset else normed.to(dtype).float() * weight.float()).to(dtype)
    low = down(x, matrices, slots, norm=FusedRmsNorm(weight, None, 1e-5, offset))
    assert torch.allclose(low.t, plain_low(normed, matrices, slots), atol=1e-2, rtol=1e-2)


@TYPES
@pytest.mark.parametrize("rank", [16, 5])
def test_what_adapters_add_is_added_in_place(dtype: torch.dtype, rank: int) -> None:
    """Into rows of a larger tensor. A row without an adapter keeps its bits."""
    matrices, slots = make_low_rank(dtype, 64, rank), [0, 1, 2]
    low = down(torch.randn(3, 64).to(dtype), matrices, slots)
    wide = torch.randn(3, sum(OUTPUTS) + 24).to(dtype)
    before, out = wide.clone(), wide[:, 8 : 8 + sum(OUTPUTS)]
    low_rank_kernels_for(dtype, wide.device).up(low, out)
    assert torch.equal(wide[1], before[1])
    assert torch.equal(wide[:, :8], before[:, :8]) and torch.equal(wide[:, -16:], before[:, -16:])
    for row in (0, 2):
        place = PLACES[row] * rank
        own = [one[:, place : place + rank].float() @ low.t[row, part] for part, one in enumerate(matrices.b)]
        wanted = before[row, 8:-16].float() + torch.cat(own)
        assert torch.allclose(out[row].float(), wanted, atol=2 * torch.finfo(dtype).eps, rtol=torch.finfo(dtype).eps)


@TYPES
def test_a_load_takes_the_kernels_where_their_numbers_are_torchs(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.zeros(1)
    kernels = low_rank_kernels_for(dtype, x.device)
    assert computes_as_torch(kernels, x.device, dtype)
    monkeypatch.setattr(kernels, "up", lambda low, out: None)
    assert not computes_as_torch(kernels, x.device, dtype)


@TYPES
def test_a_row_keeps_its_bits_beside_any_adapters(dtype: torch.dtype) -> None:
    """Beside rows with others, without any, and beside one whose numbers are infinite; and in any number of places."""
    matrices = make_low_rank(dtype, 96, 8)
    x = torch.randn(4, 96).to(dtype)
    alone = down(x[:1], matrices, [0]).t[0]
    assert torch.equal(down(x, matrices, [0, 2, 1, 3]).t[0], alone)
    for one in (*matrices.a, *matrices.b):
        one.view(-1, 8, one.shape[-1])[0] = torch.inf if one.shape[1] == 96 else 1.0
    assert torch.equal(down(x, matrices, [0, 2, 1, 3]).t[0], alone)
    fewer = LowRankMatrices(tuple(one[8:16].clone() for one in matrices.a), matrices.b, 8)
    places = SlotAdapters(torch.zeros(1, dtype=torch.int32), torch.ones(1))
    kernels = low_rank_kernels_for(dtype, x.device)
    assert torch.equal(kernels.down(x[:1], fewer, torch.tensor([0]), places).t[0], alone)
