"""The kernels of a captured step without a GPU: they run on the CPU (tests/support/cuda_on_cpu)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from core.checkpoint.attention import FullAttention
from core.memory.fit import MAX_CHATS
from core.memory.layer_state import KvStatePlan
from core.memory.sizes import FLOAT_BYTES, HALF_BYTES
from core.memory.step_sizes import GPU_CHUNK_TOKENS
from core.worker.kernels import cache_attention, step_ops
from core.worker.kernels.shared_memory import SharedMemory
from tests.support.cuda_on_cpu import cuda_on_cpu
from tests.support.gptq_block_kernel_tests import *  # noqa: F403
from tests.support.low_rank_kernel_tests import *  # noqa: F403
from tests.support.step_kernel_tests import *  # noqa: F403


@pytest.fixture(scope="module", autouse=True)
def kernels() -> Iterator[None]:
    with cuda_on_cpu():
        yield


def test_a_norm_in_another_type_is_left_to_the_model() -> None:
    """The model's own multiplies in the larger type."""
    with pytest.raises(TypeError):
        step_ops.rms_norm(torch.randn(2, 32).half(), torch.randn(32), 1e-5)
    with pytest.raises(TypeError):
        step_ops.swiglu(torch.randn(2, 32))


@pytest.mark.parametrize("num_slots", [1, 31, 33, 64, 65, MAX_CHATS, 2000])
def test_the_splits_of_all_slots_have_room_in_the_plan(num_slots: int) -> None:
    layer = FullAttention(num_heads=32, num_kv_heads=8, head_dim=128)
    rows = max(GPU_CHUNK_TOKENS, num_slots)
    planned = KvStatePlan().activation_bytes(layer, rows, 100_000, own_attention=True)
    splits = cache_attention.num_splits(num_slots, 100_000, 64)
    query_and_output = 2 * num_slots * layer.num_heads * layer.head_dim * HALF_BYTES
    each = (layer.head_dim + 2) * FLOAT_BYTES  # with its top and total
    assert query_and_output + num_slots * layer.num_heads * splits * each <= planned


def test_a_short_context_has_few_splits() -> None:
    assert cache_attention.num_splits(1, 100_000, 64) == cache_attention.MAX_SPLITS
    assert cache_attention.num_splits(1, 100, 64) == 2


def test_columns_are_as_many_as_the_gpu_has_room_for() -> None:
    """An RTX 4090, an RTX 2080, an A100; heads that are too large for one are told of, not launched."""
    kib = 1024
    assert cache_attention.choose_columns(128, SharedMemory(99 * kib, 100 * kib)) == 32
    assert cache_attention.choose_columns(128, SharedMemory(64 * kib, 64 * kib)) == 16
    assert cache_attention.choose_columns(128, SharedMemory(163 * kib, 164 * kib)) == 64
    with pytest.raises(ValueError):
        cache_attention.choose_columns(512, SharedMemory(64 * kib, 64 * kib))
