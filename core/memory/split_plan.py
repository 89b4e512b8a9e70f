"""The memory of a model that is split by layers over several GPUs: a plan for each, part by part."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from core.memory.cache_choice import EVERY_CHAT_FULL, CacheChoice
from core.memory.kernels.spec import KernelSpec
from core.memory.model_shape import ModelShape
from core.memory.plan import (
    MemoryPlan,
    activation_bytes,
    context_bytes,
    graph_bytes,
    kept_logits_bytes,
    layer_state_bytes,
    pool_bytes,
    table_bytes,
    weight_bytes,
    workspace_bytes,
)
from core.memory.sizes import FLOAT_BYTES, HALF_BYTES, round_to_block
from core.memory.step_sizes import StepSizes

# A position, int64.
POSITION_BYTES = 8


def split_plan(
    shape: ModelShape,
    kernel: KernelSpec,
    capabilities: Sequence[tuple[int, int]],
    available_bytes: Sequence[int],
    context_tokens: int,
    num_slots: int,
    sizes: StepSizes,
    captured: bool = False,
    cache: CacheChoice = EVERY_CHAT_FULL,
) -> tuple[MemoryPlan, ...]:
    """One plan a GPU for a model split by layers, as evenly as there is room: while one GPU computes some chats' next
    tokens, the next one computes the others'.

    The embedding lies on the first GPU and the head on the last, a copy where they are one; what no GPU has room for
    counts on the last. `captured`: for steps in CUDA graphs, over a `shape` with merged matrices; else a step is plain,
    with torch's attention, and verifies no tokens.
    """
    sizes = sizes if captured and shape.can_verify else sizes.without_verifying
    embedding_bytes = [
        round_to_block(count * HALF_BYTES) for count in shape.plain_elements if count == shape.vocabulary * shape.hidden
    ]
    head_bytes = sum(embedding_bytes[1:] or embedding_bytes)
    kinds_bytes = [
        one.plain_bytes + sum(count * kernel.matrix_bytes(matrix) for matrix, count in one.matrices)
        for one in shape.layer_weights
    ]
    own = [
        kinds_bytes[kind] + adapters
        for kind, adapters in zip(shape.weights_order, shape.layer_adapter_bytes, strict=True)
    ]
    # The last norm, and what else is in no layer, lies where the head does.
    head_bytes += weight_bytes(shape, kernel) - sum(embedding_bytes) - sum(own)
    weights_to = list(itertools.accumulate(own, initial=0))
    num_pages = cache.num_pages(num_slots, context_tokens) if captured else None
    kinds = [layer_state_bytes(one, context_tokens, num_slots, num_pages, shape.cache_bits) for one, _ in shape.layers]
    table = table_bytes(num_slots, context_tokens) if captured else 0
    states = [kinds[place] for place in shape.layer_order]
    graphs = -(-graph_bytes(shape, num_slots, sizes) // shape.num_layers) if captured else 0
    last = len(capabilities) - 1
    kept_logits = kept_logits_bytes(shape, num_slots) if captured else 0

    def plan(place: int, first: int, after: int) -> MemoryPlan:
        """GPU number `place` with the layers from `first` on, those before `after`."""
        activations = activation_bytes(
            shape,
            kernel,
            sizes,
            context_tokens,
            num_slots,
            captured,
            draws=not captured or place == last,
        )
        links = (place > 0) + (place < last) if captured else 0
        ends_bytes = sum(embedding_bytes[:1]) * (place == 0) + head_bytes * (place == last)
        return MemoryPlan(
            weights=ends_bytes + weights_to[after] - weights_to[first],
            scratch=kernel.scratch_bytes(shape, capabilities[place], sizes.chunk_tokens, sizes.rows(num_slots))
            + links * link_bytes(shape, max(sizes.chunk_tokens, num_slots)),
            kv_cache=sum(states[first:after]) + table,
            activations=activations,
            pool=pool_bytes(activations, captured) + (kept_logits if place == last else 0),
            workspace=workspace_bytes(capabilities[place]),
            graphs=(after - first) * graphs,
            context=context_bytes(capabilities[place]),
            loading=kernel.loading_bytes(shape, captured),
            num_layers=after - first,
        )

    empty = [plan(place, 0, 0) for place in range(last + 1)]
    # The head is read for every token, as if it were some layers more.
    head_layers = round(head_bytes * len(own) / sum(own))

    def ends(most: int) -> list[int]:
        """Where each GPU's layers end if none has more than `most`; the last one takes what is left over."""
        found, begin = [], 0
        for place in range(last):
            one, end, kept = empty[place], begin, 0
            while end < len(states) and end - begin < most:
                kept += states[end]
                weights = weights_to[end + 1] - weights_to[begin] + (end + 1 - begin) * graphs
                if max(one.running + kept, one.while_loading) + weights > available_bytes[place]:
                    break
                end += 1
            found.append(end)
            begin = end
        return [*found, len(states)]

    def has_room(most: int) -> bool:
        *_, begin, end = (0, *ends(most))
        total = plan(last, begin, end).total
        return end - begin + head_layers <= most and total <= available_bytes[last]

    few, many = 1, len(states)
    if has_room(many + head_layers):
        many += head_layers
        while few < many:
            middle = (few + many) // 2
            few, many = (few, middle) if has_room(middle) else (middle + 1, many)
    places = [0, *ends(many)]
    return tuple(plan(place, begin, end) for place, (begin, end) in enumerate(itertools.pairwise(places)))


def link_bytes(shape: ModelShape, num_rows: int) -> int:
    """What goes over from one GPU to the next: hidden states, positions, and RoPE's cosines and sines."""
    dim = max((mixer.head_dim for mixer in shape.attentions), default=0)
    return round_to_block(num_rows * (shape.hidden * HALF_BYTES + 2 * dim * FLOAT_BYTES + POSITION_BYTES))
