"""Tests of the kernels of cuda/attention.cu for all kinds of heads, on the default device: for a CPU and for a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from core.worker.kernels.decode_attention import DecodeKernels
from tests.support.head_attention import CASES, SHARINGS, HeadCase, gated, make_tokens

# Of values around 1: half precision rounds query, key, weights and the result.
TOLERANCES = {torch.float16: 6e-3, torch.bfloat16: 4e-2}
CONTEXT = 150
EACH_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def make_cache(case: HeadCase, num_slots: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = torch.randn(2, num_slots, case.heads[1], CONTEXT + 1, case.kind.dim).to(dtype)
    return keys, values


@EACH_CASE
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_one_new_token_a_row_is_normed_turned_stored_attended_and_gated(case: HeadCase, dtype: torch.dtype) -> None:
    """A row without a request, of whatever numbers, gets zeros and stores nothing."""
    columns = torch.tensor([0, 130, -1])
    tokens, device = make_tokens(case, 3, dtype, columns.device), columns.device
    keys, values = make_cache(case, 3, dtype)
    before, slots = (keys.clone(), values.clone()), torch.tensor([2, 0, 1])
    tokens.qkv[2] = torch.nan
    for slot, column in zip(slots, columns.clamp(min=0), strict=True):
        keys[slot, :, column:] = values[slot, :, column:] = torch.nan
    angles, scale = (tokens.cos[:, None], tokens.sin[:, None]), case.kind.dim**-0.5
    results = []
    for splits, clusters in SHARINGS if device.type == "cuda" else SHARINGS[:2]:
        if clusters and torch.cuda.get_device_capability() < (9, 0):
            continue
        kernels = DecodeKernels(dtype, case.heads, case.kind.dim, 3, device, splits, clusters, case.kind)
        results.append(
            kernels.attend(tokens.qkv, angles, (keys, values), slots, columns[:, None], scale, case.window, None,
                           tokens.norm, tokens.sinks)
        )  # fmt: skip
    got = results[0]
    assert all(torch.equal(got, other) for other in results) and not got[2].any()
    query, key, value, gate = tokens.split()
    for row, (slot, column) in enumerate(zip(slots[:2], columns[:2], strict=True)):
        assert torch.allclose(keys[slot, :, column].float(), key[:, row], atol=TOLERANCES[dtype])
        assert torch.equal(values[slot, :, column].float(), value[:, row])
        seen = [torch.cat((old[slot, :, :column].float(), new[:, row : row + 1]), 1)
                for old, new in zip(before, (key, value), strict=True)]  # fmt: skip
        wanted = tokens.attended(query[:, row : row + 1], seen[0], seen[1], column[None])
        wanted = gated(wanted, None if gate is None else gate[:, row : row + 1])
        assert torch.allclose(got[row].view(case.heads[0], -1).float(), wanted[:, 0], atol=TOLERANCES[dtype])


@EACH_CASE
def test_a_chunk_is_normed_turned_stored_attended_and_gated(case: HeadCase) -> None:
    """Its last tokens are not there: they store nothing."""
    count, there, begin, dtype = 40, 37, 60, torch.float16
    tokens = make_tokens(case, count, dtype, torch.zeros(1).device)
    query, key, value, gate = tokens.split()
    keys, values = make_cache(case, 2, dtype)
    wanted_keys, wanted_values = keys.clone(), values.clone()
    wanted_keys[1, :, begin : begin + there] = key[:, :there].to(dtype)
    wanted_values[1, :, begin : begin + there] = value[:, :there].to(dtype)
    places = torch.arange(begin, begin + count)
    columns = torch.where(places < begin + there, places, -1)[None]
    kernels = DecodeKernels(dtype, case.heads, case.kind.dim, 2, keys.device, (1,), False, case.kind)
    angles, slots = (tokens.cos[None], tokens.sin[None]), torch.tensor([1])
    got = kernels.apply_rope_and_store_kv(tokens.qkv, angles, (keys, values), slots, columns, tokens.norm)
    assert torch.allclose(got[0].float(), query, atol=TOLERANCES[dtype])
    assert torch.allclose(keys.float(), wanted_keys.float(), atol=TOLERANCES[dtype])
    assert torch.equal(values, wanted_values)
    if gate is not None:
        attended = torch.randn(1, count, case.heads[0], case.kind.dim).to(dtype)
        wanted = gated(attended[0].transpose(0, 1).float(), gate)
        assert torch.allclose(
            kernels.gate(attended, tokens.qkv)[0].transpose(0, 1).float(), wanted, atol=TOLERANCES[dtype]
        )
