"""Tests of the kernels of cuda/attention.cu for all kinds of heads, on the default device: for a CPU and for a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from core.worker.kernels.decode_attention import MANY_ROWS, DecodeKernels
from core.worker.kernels.packed_prefill import rows_of, tile_rows_of
from core.worker.kernels.packing import invert_permutation
from core.worker.kernels.row_layout import IN_ORDER, RowLayout
from core.worker.model.integer_kv import dequantize, quantize
from tests.support.head_attention import CASES, SHARINGS, HeadCase, gated, make_tokens
from tests.support.kv_pages import by_slot, paged

# Of values around 1: half precision rounds query, key, weights and the result.
TOLERANCES = {torch.float16: 6e-3, torch.bfloat16: 4e-2}
# Of the largest value: half a step of an integer, and what half precision rounds of its product with the scale.
LOST = {16: 0.0, 8: 1 / 254 + 1 / 512}
CONTEXT = 150
EACH_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def make_keys(case: HeadCase, num_slots: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = torch.randn(2, num_slots, case.heads[1], CONTEXT + 1, case.kind.dim).to(dtype)
    return keys, values


@EACH_CASE
@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_one_new_token_a_row_is_normed_turned_stored_attended_and_gated(
    case: HeadCase, dtype: torch.dtype, bits: int
) -> None:
    """A row without a request, of whatever numbers, gets zeros and stores nothing."""
    columns = torch.tensor([0, 130, -1])
    tokens, device = make_tokens(case, 3, dtype, columns.device), columns.device
    keys, values = make_keys(case, 3, dtype)
    slots = torch.tensor([2, 0, 1])
    tokens.qkv[2] = torch.nan
    for slot, column in zip(slots, columns.clamp(min=0), strict=True):
        keys[slot, :, column:] = values[slot, :, column:] = torch.nan
    cache = paged(keys, values, bits)
    before = [tensor.clone() for tensor in by_slot(cache)]
    angles, scale = (tokens.cos[:, None], tokens.sin[:, None]), case.kind.dim**-0.5
    results = []
    for splits, clusters in SHARINGS if device.type == "cuda" else (*SHARINGS[:2], SHARINGS[-1]):
        if clusters and device.type == "cuda" and torch.cuda.get_device_capability() < (9, 0):
            continue
        kernels = DecodeKernels(dtype, case.heads, case.kind.dim, 3, device, splits, clusters, case.kind, bits)
        results.append(
            kernels.attend(tokens.qkv, angles, cache, slots, columns[:, None], scale, case.window, IN_ORDER,
                           tokens.norm, tokens.sinks)
        )  # fmt: skip
    got, after = results[0], by_slot(cache)
    assert all(torch.equal(got, other) for other in results) and not got[2].any()
    query, key, value, gate = tokens.split()
    for row, (slot, column) in enumerate(zip(slots[:2], columns[:2], strict=True)):
        stored_key, stored_value = (tensor[slot, :, column] for tensor in after)
        wanted_value = value[:, row].to(dtype)
        if bits == 8:
            wanted_value = dequantize(*quantize(wanted_value))
        lost = LOST[bits] * float(key[:, row].abs().max())
        assert torch.allclose(stored_key.float(), key[:, row], atol=TOLERANCES[dtype] + lost)
        assert torch.equal(stored_value, wanted_value)
        assert all(
            torch.equal(one[slot, :, :column], old[slot, :, :column]) for one, old in zip(after, before, strict=True)
        )
        seen = [tensor[slot, :, : column + 1].float() for tensor in after]
        wanted = tokens.attended(query[:, row : row + 1], seen[0], seen[1], column[None])
        wanted = gated(wanted, None if gate is None else gate[:, row : row + 1])
        assert torch.allclose(got[row].view(case.heads[0], -1).float(), wanted[:, 0], atol=TOLERANCES[dtype])


def test_what_attends_lies_as_the_next_product_wants_it() -> None:
    case, rows, dtype = CASES["a part turned, gated, sinks"], 3, torch.float16
    columns = torch.tensor([5, 0, -1])
    tokens, order = make_tokens(case, rows, dtype, columns.device), torch.randperm(case.heads[0] * case.kind.dim).int()
    cache, slots = paged(*make_keys(case, rows, dtype)), torch.arange(rows)
    kernels = DecodeKernels(dtype, case.heads, case.kind.dim, rows, columns.device, (1,), False, case.kind)

    def attend(layout: RowLayout) -> torch.Tensor:
        angles, scale = (tokens.cos[:, None], tokens.sin[:, None]), case.kind.dim**-0.5
        return kernels.attend(tokens.qkv, angles, cache, slots, columns[:, None], scale, case.window, layout,
                              tokens.norm, tokens.sinks)  # fmt: skip

    plain, tile_rows = attend(IN_ORDER), tile_rows_of(rows)
    for inverse, wanted in ((None, plain), (invert_permutation(order), plain[:, order.long()])):
        assert torch.equal(attend(RowLayout(inverse)), wanted)
        swizzled = attend(RowLayout(inverse, tile_rows))
        assert swizzled.shape[0] == tile_rows and torch.equal(rows_of(swizzled, rows), wanted)


@pytest.mark.parametrize(("name", "rows"), [("plain", 70), ("Qwen3.5: a quarter turned, normed, gated", MANY_ROWS)])
def test_a_step_of_many_chats_gives_each_what_it_has_alone(name: str, rows: int) -> None:
    """Of large heads many rows go through another kernel."""
    case, dtype = CASES[name], torch.float16
    columns = torch.arange(rows) % 3
    tokens = make_tokens(case, rows, dtype, columns.device)
    cache, slots = paged(*make_keys(case, rows, dtype)), torch.arange(rows).flip(0)
    kernels = DecodeKernels(dtype, case.heads, case.kind.dim, rows, columns.device, (1,), False, case.kind)

    def attend(first: int, end: int) -> torch.Tensor:
        angles, some = (tokens.cos[first:end, None], tokens.sin[first:end, None]), slice(first, end)
        scale = case.kind.dim**-0.5
        return kernels.attend(tokens.qkv[some], angles, cache, slots[some], columns[some, None], scale, case.window,
                              IN_ORDER, tokens.norm)  # fmt: skip

    together = attend(0, rows)
    for row in (0, 2, rows - 4, rows - 1):
        assert torch.equal(attend(row, row + 1)[0], together[row])


@EACH_CASE
@pytest.mark.parametrize("bits", [16, 8])
def test_rows_of_one_text_see_those_before_them_in_the_second_of_two_runs(case: HeadCase, bits: int) -> None:
    """To the last bit as one after the other, over what rejected tokens have left in the cache."""
    count, begin, dtype = 5, 62, torch.float16
    tokens = make_tokens(case, count, dtype, torch.zeros(1).device)
    device = tokens.qkv.device
    keys, values = make_keys(case, 2, dtype)
    cache, other = paged(keys, values, bits), paged(keys, values, bits)
    how = SHARINGS[-1] if device.type == "cuda" and torch.cuda.get_device_capability() >= (9, 0) else SHARINGS[0]
    kernels = DecodeKernels(dtype, case.heads, case.kind.dim, count, device, *how, case.kind, bits)
    slots, columns = torch.ones(count).long(), torch.arange(begin, begin + count)[:, None]
    scale, alone = case.kind.dim**-0.5, list[torch.Tensor]()
    for row in range(count):
        one = slice(row, row + 1)
        angles = tokens.cos[one, None], tokens.sin[one, None]
        alone.append(
            kernels.attend(tokens.qkv[one], angles, other, slots[one], columns[one], scale, case.window, IN_ORDER,
                           tokens.norm, tokens.sinks, starts_early=False)
        )  # fmt: skip
    angles = tokens.cos[:, None], tokens.sin[:, None]
    for starts_early in (True, False):
        got = kernels.attend(tokens.qkv, angles, cache, slots, columns, scale, case.window, IN_ORDER, tokens.norm,
                             tokens.sinks, starts_early)  # fmt: skip
    assert torch.equal(got, torch.cat(alone))
    assert torch.equal(torch.nan_to_num(cache.keys), torch.nan_to_num(other.keys))


@EACH_CASE
@pytest.mark.parametrize("bits", [16, 8])
def test_a_chunk_is_normed_turned_stored_attended_and_gated(case: HeadCase, bits: int) -> None:
    """Its last tokens are not there: they store nothing."""
    count, there, begin, dtype = 40, 37, 60, torch.float16
    tokens = make_tokens(case, count, dtype, torch.zeros(1).device)
    query, key, value, gate = tokens.split()
    keys, values = make_keys(case, 2, dtype)
    cache = paged(keys, values, bits)
    keys, values = by_slot(cache)
    wanted_keys, wanted_values = keys.clone(), values.clone()
    wanted_keys[1, :, begin : begin + there] = key[:, :there].to(dtype)
    new_values = value[:, :there].to(dtype)
    wanted_values[1, :, begin : begin + there] = new_values if bits == 16 else dequantize(*quantize(new_values))
    places = torch.arange(begin, begin + count)
    columns = torch.where(places < begin + there, places, -1)[None]
    kernels = DecodeKernels(dtype, case.heads, case.kind.dim, 2, keys.device, (1,), False, case.kind, bits)
    angles, slots = (tokens.cos[None], tokens.sin[None]), torch.ones(count).long()
    got = kernels.apply_rope_and_store_kv(tokens.qkv, angles, cache, slots, columns, tokens.norm)
    keys, values = by_slot(cache)
    assert torch.allclose(got[0].float(), query, atol=TOLERANCES[dtype])
    lost = LOST[bits] * float(key.abs().max())
    assert torch.allclose(keys.float(), wanted_keys.float(), atol=TOLERANCES[dtype] + lost)
    assert torch.equal(values, wanted_values)
    if gate is not None:
        attended = torch.randn(1, count, case.heads[0], case.kind.dim).to(dtype)
        wanted = gated(attended[0].transpose(0, 1).float(), gate)
        assert torch.allclose(
            kernels.gate(attended, tokens.qkv)[0].transpose(0, 1).float(), wanted, atol=TOLERANCES[dtype]
        )
