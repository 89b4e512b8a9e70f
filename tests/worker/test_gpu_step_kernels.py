"""On a GPU: the kernels of a captured step, also with a real model's sizes. Run with `pytest -m gpu` on a GPU host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from core.worker.kernels import cache_attention, step_ops
from tests.support.expert_adapter_tests import *  # noqa: F403
from tests.support.gptq_block_kernel_tests import *  # noqa: F403
from tests.support.kv_pages import paged
from tests.support.low_rank_kernel_tests import *  # noqa: F403
from tests.support.step_kernel_tests import *  # noqa: F403
from tests.support.step_kernel_tests import HALVES, TOLERANCES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
NUM_HEADS, NUM_KV_HEADS, DIM, CONTEXT_TOKENS, CHUNK_TOKENS = 32, 8, 128, 4096, 512


@pytest.fixture(autouse=True)
def on_the_gpu() -> Iterator[None]:
    with torch.device("cuda", 0):
        yield


@HALVES
def test_attention_over_a_long_context_is_torchs(dtype: torch.dtype) -> None:
    keys, values = torch.randn(2, 2, NUM_KV_HEADS, CONTEXT_TOKENS + 1, DIM).to(dtype)
    chunk = torch.randn(1, CHUNK_TOKENS, NUM_HEADS, DIM).to(dtype).transpose(1, 2)
    begin, slots = CONTEXT_TOKENS - CHUNK_TOKENS, torch.tensor([1])
    chunks, cache = torch.tensor([[1, begin, CHUNK_TOKENS, 0]]), paged(keys, values)
    got = cache_attention.attend_prefill(chunk, cache, chunks, DIM**-0.5, 2**30)
    sees = torch.arange(CONTEXT_TOKENS) <= begin + torch.arange(CHUNK_TOKENS)[:, None]
    wanted = torch.nn.functional.scaled_dot_product_attention(
        chunk.float(), keys[1:, :, :-1].float(), values[1:, :, :-1].float(), sees, enable_gqa=True
    )
    assert (got.transpose(1, 2).float() - wanted).abs().max() < TOLERANCES[dtype]
    last = cache_attention.attend_decode(
        chunk[:, :, -1:], cache, slots, torch.tensor([CONTEXT_TOKENS]), DIM**-0.5, 2**30
    )
    assert (last[0, 0].float() - wanted[0, :, -1]).abs().max() < TOLERANCES[dtype]


def test_a_step_is_captured_and_reads_what_changes() -> None:
    x, weight = torch.randn(4, 4096).half(), torch.randn(4096).half()
    slots, tokens, positions = torch.tensor([0, 1]), torch.tensor([5, 6, 7]), torch.tensor([1, 2, 3])

    def compute() -> tuple[torch.Tensor, ...]:
        return step_ops.rms_norm(x, weight, 1e-5), *step_ops.gather_slots(slots, tokens, positions, 2)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        compute()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            normed, token, position, column, end = compute()
        x.mul_(3.0).add_(1.0)
        slots.copy_(torch.tensor([2, 1]))
        graph.replay()
        assert torch.equal(normed, step_ops.rms_norm(x, weight, 1e-5))
    found = [one.tolist() for one in (token, position, column, end)]
    assert found == [[7, 6], [3, 2], [-1, 2], [0, 3]]
