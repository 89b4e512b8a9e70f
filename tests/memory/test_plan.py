"""The memory plan: exact where the bytes are known, and everywhere growing with what it should grow with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.checkpoint.attention import FullAttention
from core.checkpoint.checkpoint import Checkpoint
from core.common.i18n import catalogue as texts
from core.library import catalogue
from core.memory.kernels.gptqmodel import TORCH, TRITON
from core.memory.kernels.llamadeck import LLAMADECK
from core.memory.kernels.registry import kernel_named
from core.memory.model_shape import ModelShape, read_shape
from core.memory.plan import MemoryPlan, layer_state_bytes, make_plan, split_plan, state_bytes, weight_bytes
from core.memory.sizes import MIB

AMPERE = (8, 6)
CHUNK_TOKENS = 512
SIZES = {"7B": "Llama-2-7B-Chat-GPTQ", "13B": "Llama-2-13B-chat-GPTQ", "70B": "Llama-2-70B-Chat-GPTQ"}
# The allocator's rounding of each tensor.
ROUNDING_MIB = 0.7
# Resident bytes by published shapes: as loaded without biases, and repacked without zeros (Marlin's, ours), in MiB.
RESIDENT = [
    ("7B", "main", 3713.5, 3685.1),
    ("7B", "gptq-4bit-64g-actorder_True", 3834.1, 3790.3),
    ("7B", "gptq-4bit-32g-actorder_True", 4075.4, 3983.3),
    ("13B", "main", 6918.9, 6865.0),
    ("13B", "gptq-4bit-32g-actorder_True", 7627.9, 7445.8),
    ("13B", "gptq-8bit-128g-actorder_True", 13016.2, 12928.6),
    ("13B", "gptq-8bit-64g-actorder_True", 13299.8, 13117.7),
    ("70B", "gptq-4bit-128g-actorder_True", 34941.3, 34710.3),
    ("70B", "gptq-4bit-32g-actorder_True", 38766.3, 37770.3),
]


def shape_of(size: str, branch: str = "main") -> ModelShape:
    return read_shape(checkpoint_of(size, branch))


def checkpoint_of(size: str, branch: str = "main") -> Checkpoint:
    return catalogue.checkpoint(catalogue.find(SIZES[size], branch))


def plan_of(shape: ModelShape, kernel: str = "triton", context: int = 2048, chats: int = 1) -> MemoryPlan:
    return make_plan(shape, kernel_named(kernel), AMPERE, context, chats, CHUNK_TOKENS)


@pytest.mark.parametrize(("size", "branch", "loaded_mib", "packed_mib"), RESIDENT)
def test_weights_are_the_bytes_that_the_published_shapes_make(
    size: str, branch: str, loaded_mib: float, packed_mib: float
) -> None:
    shape = shape_of(size, branch)
    assert weight_bytes(shape, TRITON) / MIB == pytest.approx(loaded_mib, abs=ROUNDING_MIB)
    is_ordered = checkpoint_of(size, branch).quantization.is_permuted
    # The published column counts one of the two indices that act-order needs.
    index_mib = sum(count * matrix.in_features * 4 for matrix, count in shape.matrices) / MIB if is_ordered else 0
    found_mib = weight_bytes(shape, LLAMADECK) / MIB
    assert packed_mib - ROUNDING_MIB <= found_mib <= packed_mib + 2 * index_mib + ROUNDING_MIB


def test_an_h100_needs_no_room_for_a_matrix_written_out() -> None:
    """132 blocks of threads add up 128 rows of 256 outputs in float32; other cards write a matrix out, by 192 MiB."""
    rooms = [
        make_plan(shape_of("70B"), LLAMADECK, capability, 2048, 1, CHUNK_TOKENS).scratch
        for capability in ((9, 0), (8, 9), (12, 0))
    ]
    assert rooms[1] == rooms[2]
    assert (rooms[1] - rooms[0]) / MIB == pytest.approx(192 - 132 * 128 * 256 * 4 / MIB, abs=0.01)


def test_three_bits_take_three_quarters_of_four() -> None:
    """70B with 3 bit and groups of 128 holds 26717.5 MiB once loaded."""
    shape = shape_of("70B", "gptq-3bit-128g-actorder_True")
    assert weight_bytes(shape, TORCH) / MIB == pytest.approx(26717.5, abs=ROUNDING_MIB)


@pytest.mark.parametrize(("size", "kib_a_token"), [("7B", 512), ("13B", 800), ("70B", 320)])
def test_the_cache_has_keys_and_values_for_every_token_and_one_unread_column(size: str, kib_a_token: int) -> None:
    """Layers * 2 * key-value heads * head size * 2 bytes a token; a column more for what nobody reads."""
    shape = shape_of(size)
    for context, chats in ((1, 1), (511, 1), (4096, 4)):
        assert state_bytes(shape, context, chats) == chats * (context + 1) * kib_a_token * 1024


@pytest.mark.parametrize("kernel", ["llamadeck", "triton", "torch"])
@pytest.mark.parametrize("size", ["7B", "70B"])
def test_a_plan_grows_with_context_chats_and_layers(size: str, kernel: str) -> None:
    shape = shape_of(size)
    plan = plan_of(shape, kernel)
    assert plan_of(shape, kernel, context=2049).running > plan.running
    assert plan_of(shape, kernel, chats=2).running > plan.running
    less = tuple((matrix, count - 1) for matrix, count in shape.matrices)
    ((layer, num_layers),) = shape.layers
    fewer = replace(shape, layers=((layer, num_layers - 1),), matrices=less)
    assert plan_of(fewer, kernel).running < plan.running


def test_no_part_is_negative_and_the_total_covers_running_and_loading() -> None:
    for entry in catalogue.entries():
        shape = read_shape(catalogue.checkpoint(entry))
        for kernel in ("llamadeck", "triton", "torch"):
            plan = plan_of(shape, kernel)
            assert all(part >= 0 for part in plan.parts_mib().values())
            assert plan.total >= max(plan.running, plan.weights + plan.loading)
            assert plan.allocated + plan.context == plan.total


def test_a_longer_context_takes_its_cache_and_nothing_else() -> None:
    """Torch's attention repeats shared heads for each query's; it was in the plan of steps that never call it."""
    shape = read_shape(checkpoint_of("70B"), merged=True)
    for captured in (True, False):
        short, long = (
            make_plan(shape, LLAMADECK, AMPERE, context, 1, CHUNK_TOKENS, captured) for context in (2048, 65_536)
        )
        assert long.running - short.running == long.kv_cache - short.kv_cache


def test_plans_add_up_part_by_part() -> None:
    plan = plan_of(shape_of("7B"))
    assert (plan + plan).parts_mib() == {name: 2 * part for name, part in plan.parts_mib().items()}


@pytest.mark.parametrize("rooms_gib", [(24, 24), (80, 80), (2, 80), (24, 24, 24), (1, 1)])
def test_several_gpus_hold_every_layer_once(rooms_gib: tuple[int, ...]) -> None:
    shape = shape_of("70B")
    rooms = [gib * 2**30 for gib in rooms_gib]
    whole = plan_of(shape, "llamadeck", context=4096)
    plans = split_plan(shape, LLAMADECK, [AMPERE] * len(rooms), rooms, 4096, 1, CHUNK_TOKENS)
    assert len(plans) == len(rooms)
    assert sum(plan.kv_cache for plan in plans) == whole.kv_cache
    assert sum(plan.weights for plan in plans) == pytest.approx(whole.weights, abs=shape.num_layers)
    # Only the last may hold more than it has room for: what is left over must count somewhere.
    assert sum(plan.num_layers for plan in plans) == shape.num_layers
    assert all(plan.kv_cache == 0 or plan.total <= room for plan, room in zip(plans[:-1], rooms[:-1], strict=True))


def test_each_gpu_of_a_split_counts_the_cache_of_its_own_layers() -> None:
    """Gemma 4: layers with few large heads, with many small ones, and with none that they keep."""
    shape = shape_of("7B")
    ((layer, _),) = shape.layers
    large = replace(layer, mixer=FullAttention(32, 4, 512))
    shared = replace(layer, mixer=FullAttention(32, 32, 128, shares_cache=True))
    uneven = replace(shape, layers=((large, 16), (layer, 8), (shared, 8)), layer_order=(0,) * 16 + (1,) * 8 + (2,) * 8)
    plans = split_plan(uneven, LLAMADECK, [AMPERE] * 2, [4 * 2**30] * 2, 4096, 1, CHUNK_TOKENS)
    assert sum(plan.kv_cache for plan in plans) == state_bytes(uneven, 4096, 1)
    states = [layer_state_bytes(one, 4096, 1) for one in (large, layer, shared)]
    assert states[2] == 0 and states[0] == states[1] / 2
    first = plans[0].num_layers
    assert 0 < first < 32
    assert plans[0].kv_cache == sum(states[place] for place in uneven.layer_order[:first])


def test_every_part_of_a_plan_has_a_name_in_both_languages() -> None:
    for language in ("en", "zh"):
        for name in plan_of(shape_of("7B")).parts_mib():
            assert f"cli.fit_part_{name}" in texts(language)
