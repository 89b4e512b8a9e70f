"""The memory plan: exact where the bytes are known, and everywhere growing with what it should grow with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.checkpoint.attention import FullAttention
from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.layers import DenseMlp
from core.common.i18n import catalogue as texts
from core.library import catalogue
from core.memory.cache_choice import CacheChoice
from core.memory.fit import MAX_CHATS
from core.memory.kernels.gptqmodel import TORCH, TRITON
from core.memory.kernels.llamadeck import LLAMADECK
from core.memory.kernels.registry import kernel_named
from core.memory.model_shape import ModelShape, read_shape
from core.memory.plan import (
    LAYER_GRAPH_BYTES,
    SCORED_TOKENS,
    MemoryPlan,
    activation_bytes,
    batch_sizes,
    layer_state_bytes,
    make_plan,
    state_bytes,
    weight_bytes,
)
from core.memory.sizes import BLOCK_BYTES, HALF_BYTES, MIB
from core.memory.split_plan import split_plan
from core.memory.step_sizes import USUAL_SIZES, VERIFIED_TOKENS, StepSizes
from tests.support.qwen3_5_release import qwen3_5_27b

AMPERE = (8, 6)
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
    return make_plan(shape, kernel_named(kernel), AMPERE, context, chats, USUAL_SIZES)


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
        make_plan(shape_of("70B"), LLAMADECK, capability, 2048, 1, USUAL_SIZES).scratch
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
            make_plan(shape, LLAMADECK, AMPERE, context, 1, USUAL_SIZES, captured) for context in (2048, 65_536)
        )
        assert long.running - short.running == long.kv_cache - short.kv_cache


def test_fewer_tokens_in_all_take_less_cache_and_nothing_else() -> None:
    shape = shape_of("7B")
    every = make_plan(shape, LLAMADECK, AMPERE, 4096, 8, USUAL_SIZES)
    shared = make_plan(shape, LLAMADECK, AMPERE, 4096, 8, USUAL_SIZES, cache=CacheChoice(3 * 4096))
    assert every.kv_cache - shared.kv_cache == 5 * 4096 * 512 * 1024
    assert replace(every, kv_cache=0) == replace(shared, kv_cache=0)


def test_plans_add_up_part_by_part() -> None:
    plan = plan_of(shape_of("7B"))
    assert (plan + plan).parts_mib() == {name: 2 * part for name, part in plan.parts_mib().items()}


@pytest.mark.parametrize("rooms_gib", [(24, 24), (80, 80), (2, 80), (24, 24, 24), (1, 1)])
def test_several_gpus_hold_every_layer_once(rooms_gib: tuple[int, ...]) -> None:
    shape = shape_of("70B")
    rooms = [gib * 2**30 for gib in rooms_gib]
    whole = plan_of(shape, "llamadeck", context=4096)
    plans = split_plan(shape, LLAMADECK, [AMPERE] * len(rooms), rooms, 4096, 1, USUAL_SIZES)
    assert len(plans) == len(rooms)
    # In rows: plain steps have no pages.
    assert sum(plan.kv_cache for plan in plans) == state_bytes(shape, 4096, 1)
    assert sum(plan.weights for plan in plans) == pytest.approx(whole.weights, abs=shape.num_layers)
    # Only the last may hold more than it has room for: what is left over must count somewhere.
    assert sum(plan.num_layers for plan in plans) == shape.num_layers
    assert all(plan.kv_cache == 0 or plan.total <= room for plan, room in zip(plans[:-1], rooms[:-1], strict=True))


@pytest.mark.parametrize("captured", [False, True])
def test_a_split_is_as_even_as_there_is_room(captured: bool) -> None:
    """The first GPU was once filled, and stood still while the second one did the rest."""
    shape = read_shape(checkpoint_of("70B"), merged=captured)

    def split(*rooms_gib: int) -> list[MemoryPlan]:
        rooms = [gib * 2**30 for gib in rooms_gib]
        return list(split_plan(shape, LLAMADECK, [AMPERE] * len(rooms), rooms, 4096, 1, USUAL_SIZES, captured))

    assert [plan.num_layers for plan in split(80, 80)] == [41, 39]
    assert [plan.num_layers for plan in split(24, 24)] == [41, 39]
    uneven = split(28, 16)
    assert all(plan.total <= gib * 2**30 for plan, gib in zip(uneven, (28, 16), strict=True))
    # One layer more would not go into the smaller one.
    assert uneven[1].total + 430 * MIB > 16 * 2**30


def test_a_head_that_is_the_embedding_counts_on_both_ends() -> None:
    shape = shape_of("7B")
    table = shape.vocabulary * shape.hidden
    tied = replace(shape, plain_elements=(table, *(one for one in shape.plain_elements if one != table)))
    rooms = [8 * 2**30] * 2
    own, shared = (split_plan(one, LLAMADECK, [AMPERE] * 2, rooms, 4096, 1, USUAL_SIZES) for one in (shape, tied))
    assert [plan.weights for plan in shared] == [plan.weights for plan in own]


def test_a_split_in_graphs_counts_what_each_gpu_has_of_it() -> None:
    shape = read_shape(checkpoint_of("70B"), merged=True)
    rooms, slots = [48 * 2**30] * 2, 32
    first, last = split_plan(shape, LLAMADECK, [AMPERE] * 2, rooms, 512, slots, USUAL_SIZES, captured=True)
    whole = make_plan(shape, LLAMADECK, AMPERE, 512, slots, USUAL_SIZES, captured=True)
    assert first.graphs + last.graphs == pytest.approx(whole.graphs, abs=shape.num_layers)
    # The draws are the last one's alone.
    assert first.activations < last.activations == whole.activations
    assert 0 < first.scratch - whole.scratch == last.scratch - whole.scratch < 16 * MIB


def test_each_gpu_of_a_split_counts_the_weights_of_its_own_layers() -> None:
    """GLM 4.5's first layer has no experts. Each layer counted as one of the average: the last GPU had half a gigabyte
    more than its plan said."""
    shape = shape_of("7B")
    (whole,) = shape.layer_weights
    few = replace(whole, matrices=whole.matrices[:1])
    left_out = sum(count * LLAMADECK.matrix_bytes(matrix) for matrix, count in whole.matrices[1:])
    uneven = replace(shape, layer_weights=(few, whole), weights_order=(0,) * 4 + (1,) * 28,
                     matrices=tuple((matrix, count if matrix == whole.matrices[0][0] else count * 28 // 32)
                                    for matrix, count in shape.matrices))  # fmt: skip
    rooms = [8 * 2**30] * 2
    even, plans = (split_plan(one, LLAMADECK, [AMPERE] * 2, rooms, 4096, 1, USUAL_SIZES) for one in (shape, uneven))
    assert [one.num_layers for one in plans] == [one.num_layers for one in even]
    assert even[0].weights - plans[0].weights == 4 * left_out and even[1].weights == plans[1].weights


def test_each_gpu_of_a_split_counts_the_cache_of_its_own_layers() -> None:
    """Gemma 4: layers with few large heads, with many small ones, and with none that they keep."""
    shape = shape_of("7B")
    ((layer, _),) = shape.layers
    large = replace(layer, mixer=FullAttention(32, 4, 512))
    shared = replace(layer, mixer=FullAttention(32, 32, 128, shares_cache=True))
    uneven = replace(shape, layers=((large, 16), (layer, 8), (shared, 8)), layer_order=(0,) * 16 + (1,) * 8 + (2,) * 8)
    plans = split_plan(uneven, LLAMADECK, [AMPERE] * 2, [4 * 2**30] * 2, 4096, 1, USUAL_SIZES)
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


def test_a_scored_prompts_logits_have_room_in_plain_passes_too() -> None:
    """Those scored a quarter as many tokens at a time, by a number of their own that the plan did not know."""
    shape = shape_of("7B")
    sizes = [replace(shape, vocabulary=size) for size in (3_000_000, 3_000_001)]
    fewer, more = (activation_bytes(one, TRITON, USUAL_SIZES, 64, 1, own_attention=False) for one in sizes)
    assert more - fewer > SCORED_TOKENS * HALF_BYTES


def test_a_scored_prompts_logits_have_room_where_the_vocabulary_is_large_and_the_layers_are_small() -> None:
    shape = shape_of("7B")
    small = replace(shape, layers=tuple((replace(layer, mlp=DenseMlp(64)), count) for layer, count in shape.layers))

    def bytes_a_token(one: ModelShape, vocabulary: int) -> float:
        """Of the vocabulary."""
        more = [plan_of(replace(one, vocabulary=size)).activations for size in (vocabulary, vocabulary + 32_000)]
        return (more[1] - more[0]) / 32_000

    # A chunk's MLP is larger than the logits of some tokens in most models.
    assert bytes_a_token(small, 3_000_000) == bytes_a_token(shape, 32_000) + SCORED_TOKENS * HALF_BYTES


@pytest.mark.parametrize("captured", [False, True])
def test_tokens_that_are_verified_take_their_rows_and_a_graph(captured: bool) -> None:
    shape = read_shape(checkpoint_of("7B"), merged=captured)

    def plan(verified_tokens: int, chats: int = 1, capability: tuple[int, int] = AMPERE) -> MemoryPlan:
        sizes = StepSizes(512, verified_tokens)
        return make_plan(shape, LLAMADECK, capability, 2048, chats, sizes, captured)

    none, some = plan(0), plan(VERIFIED_TOKENS)
    # Logits of a row in half precision and twice in float32; parts of the attention of each head.
    logits = 7 * shape.vocabulary * (2 + 2 * 4)
    assert some.activations - none.activations == logits
    assert some.scratch - none.scratch == pytest.approx(7 * 32 * (8 * (128 + 2) + 1) * 4, abs=4 * BLOCK_BYTES)
    assert some.graphs - none.graphs == (32 * LAYER_GRAPH_BYTES if captured else 0)
    assert plan(VERIFIED_TOKENS, 8).activations == plan(0, 8).activations


@pytest.mark.parametrize("captured", [False, True])
def test_where_nothing_is_ever_verified_no_rows_are_counted_for_it(captured: bool) -> None:
    """The state of a recurrent layer cannot go back; plain steps over several GPUs are torch's."""
    both = USUAL_SIZES, USUAL_SIZES.without_verifying
    recurrent = read_shape(qwen3_5_27b(is_whole=True), merged=captured)
    assert not recurrent.can_verify
    whole = [make_plan(recurrent, LLAMADECK, AMPERE, 2048, 1, sizes, captured) for sizes in both]
    assert whole[0] == whole[1]
    shape = read_shape(checkpoint_of("7B"), merged=captured)
    split = [split_plan(shape, LLAMADECK, [AMPERE] * 2, [2**33] * 2, 2048, 1, sizes, captured) for sizes in both]
    assert (split[0] == split[1]) is not captured


@pytest.mark.parametrize("num_gpus", [1, 2])
def test_more_chats_than_64_take_their_rows_another_graph_and_its_logits(num_gpus: int) -> None:
    """A step of 64 keeps its logits beside those of all, and a larger one has twice as many kernels. Up to 64 chats
    nothing of that is counted."""
    shape = read_shape(checkpoint_of("7B"), merged=True)
    assert batch_sizes(64) == [1, 2, 4, 8, 16, 32, 64] and batch_sizes(65)[-3:] == [32, 64, 65]
    assert batch_sizes(MAX_CHATS)[-2:] == [64, MAX_CHATS]

    def plan(chats: int) -> MemoryPlan:
        if num_gpus == 1:
            return make_plan(shape, LLAMADECK, AMPERE, 2048, chats, USUAL_SIZES, True)
        sizes = [AMPERE] * num_gpus, [200 * 2**30] * num_gpus, 2048, chats, USUAL_SIZES, True
        return split_plan(shape, LLAMADECK, *sizes)[-1]

    few, half, more, most = (plan(chats) for chats in (63, 64, 65, MAX_CHATS))
    logits, layers = 64 * shape.vocabulary * HALF_BYTES, shape.num_layers // num_gpus
    assert (half.pool - half.activations) == (few.pool - few.activations)
    assert (more.pool - more.activations) - (half.pool - half.activations) == logits
    assert (most.pool - most.activations) == (more.pool - more.activations)
    assert half.graphs == few.graphs and most.graphs == more.graphs
    assert more.graphs - half.graphs == pytest.approx(2 * layers * LAYER_GRAPH_BYTES, rel=0.2)
    # Logits of each chat in half precision and twice in float32; what its draws go by.
    each = shape.vocabulary * (HALF_BYTES + 2 * 4 + 4 + 1 + 1 / 8)
    assert most.activations - more.activations == pytest.approx((MAX_CHATS - 65) * each)
