"""Tests of attention of prompts' chunks with the heads that compute capability 9.0 has a kernel for, held against torch
on the default device: for a CPU and for a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from core.worker.kernels import cache_attention
from core.worker.kernels.kv_pages import KvPages
from tests.support.kv_pages import by_slot, paged
from tests.support.step_kernel_tests import HALVES, TOLERANCES, attention

NO_WINDOW = 2**30
SIZES = pytest.mark.parametrize("dim", [64, 128, 256])
BITS = pytest.mark.parametrize("bits", [16, 8])


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def make_cache(
    num_columns: int, dim: int, dtype: torch.dtype, bits: int, end: int
) -> tuple[KvPages, torch.Tensor, torch.Tensor]:
    """Two slots of two heads. Behind `end` stands what an earlier chat left there: NaN."""
    keys, values = torch.randn(2, 2, 2, num_columns, dim).to(dtype)
    keys[:, :, end:] = values[:, :, end:] = torch.nan
    cache = paged(keys, values, bits)
    return cache, *by_slot(cache)


@HALVES
@SIZES
@BITS
@pytest.mark.parametrize(("begin", "count"), [(0, 5), (0, 129), (63, 66), (200, 131)])
def test_a_prompts_tokens_see_what_came_before_them(
    begin: int, count: int, bits: int, dim: int, dtype: torch.dtype
) -> None:
    """Chunks that end in the middle of a tile of queries, of a page and of the columns that are taken at once."""
    cache, keys, values = make_cache(400, dim, dtype, bits, begin + count)
    query = torch.randn(1, count + 3, 4, dim).to(dtype).transpose(1, 2)
    chunks = torch.tensor([[1, begin, count, 0]])
    got = cache_attention.attend_prefill(query, cache, chunks, dim**-0.5, NO_WINDOW)
    wanted = attention(query[0, :, :count], keys[1], values[1], torch.arange(begin, begin + count), NO_WINDOW)
    assert torch.allclose(got[0, :count].float(), wanted, atol=TOLERANCES[dtype])
    assert not got[0, count:].any()


@SIZES
@BITS
@pytest.mark.parametrize("window", [1, 70, 200])
def test_a_window_and_sinks_of_long_prompts(window: int, bits: int, dim: int) -> None:
    cache, keys, values = make_cache(400, dim, torch.float16, bits, 380)
    query, sinks = torch.randn(1, 150, 4, dim).half().transpose(1, 2), torch.randn(4).half() * 3
    chunks, places = torch.tensor([[0, 230, 150, 0]]), torch.arange(230, 380)
    got = cache_attention.attend_prefill(query, cache, chunks, dim**-0.5, window, sinks)
    wanted = attention(query[0], keys[0], values[0], places, window, sinks)
    assert torch.allclose(got[0].float(), wanted, atol=TOLERANCES[torch.float16])


@SIZES
def test_prompts_side_by_side_are_read_as_each_by_itself(dim: int) -> None:
    """To the last bit, and however a prompt is cut into chunks."""
    cache, keys, values = make_cache(400, dim, torch.float16, 16, 400)
    query = torch.randn(1, 420, 4, dim).half().transpose(1, 2)
    chunks = torch.tensor([[1, 20, 270, 0], [0, 0, 1, 270], [0, 5, 133, 271], [0, 0, 0, 404]])
    got = cache_attention.attend_prefill(query, cache, chunks, dim**-0.5, NO_WINDOW)
    assert not got[0, 404:].any()
    for slot, begin, count, row in chunks[:3].tolist():
        own = query[:, :, row : row + count]
        alone = torch.tensor([[slot, begin, count, 0]])
        assert torch.equal(
            cache_attention.attend_prefill(own, cache, alone, dim**-0.5, NO_WINDOW)[0], got[0, row : row + count]
        )
        wanted = attention(own[0], keys[slot], values[slot], torch.arange(begin, begin + count), NO_WINDOW)
        assert torch.allclose(got[0, row : row + count].float(), wanted, atol=TOLERANCES[torch.float16])
    first = query[:, :, :100]
    parts = [
        cache_attention.attend_prefill(part, cache, torch.tensor([[1, begin, part.shape[2], 0]]), dim**-0.5, NO_WINDOW)
        for part, begin in ((first, 20), (query[:, :, 100:270], 120))
    ]
    assert torch.equal(torch.cat(parts, 1)[0], got[0, :270])


def test_scores_far_from_0_weigh_as_they_should() -> None:
    """Scores of thousands, which 2 to the power of has no number for."""
    cache, keys, values = make_cache(200, 128, torch.float16, 16, 200)
    query = torch.randn(1, 70, 4, 128).half().transpose(1, 2) * 100
    got = cache_attention.attend_prefill(query, cache, torch.tensor([[1, 130, 70, 0]]), 1.0, NO_WINDOW)
    wanted = attention(query[0].float() * 128**0.5, keys[1], values[1], torch.arange(130, 200), NO_WINDOW)
    assert torch.allclose(got[0].float(), wanted, atol=TOLERANCES[torch.float16])
