"""The memory that a model takes on one GPU, part by part, before anything is loaded.

The same plan is the verdict's sum (core/memory/fit.py) and what the worker executes. Every part says where it comes
from. Allocations are rounded to 512 bytes, as torch's allocator does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from core.checkpoint.layers import Experts, LayerShape, Mlp
from core.checkpoint.recurrent import Mamba2, ShortConv
from core.memory.expert_shapes import router_bytes
from core.memory.kernels.spec import KernelSpec
from core.memory.layer_state import DELTA_TOKENS, mask_bytes, state_plan
from core.memory.model_shape import ModelShape
from core.memory.sizes import FLOAT_BYTES, HALF_BYTES, MIB, SEGMENT_BYTES, SMALL_SEGMENT_BYTES, round_to_block

# How much of a prompt the engine reads at once on a GPU; the plan holds room for that much.
GPU_CHUNK_TOKENS = 512
# What NVML counts for a captured step, by layer: 50 KiB on an H200 with 7B and 13B, whose layers are 13 kernels.
LAYER_GRAPH_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of GPU memory by part. `loading` is what a load needs for a moment beyond the weights and scratch."""

    weights: int
    scratch: int
    kv_cache: int
    activations: int
    pool: int
    workspace: int
    graphs: int
    context: int
    loading: int
    # Of a model that is split: how many of its layers lie on this GPU.
    num_layers: int = 0

    @property
    def running(self) -> int:
        """What is held once the model is ready, with every slot full."""
        kept = self.weights + self.scratch + self.kv_cache + self.activations + self.pool
        return kept + self.workspace + self.graphs + self.context

    @property
    def total(self) -> int:
        """What must be free: the larger of running and loading, which happens before the cache is there."""
        loading = self.weights + self.scratch + self.loading + self.workspace + self.graphs + self.context
        return max(self.running, loading)

    @property
    def allocated(self) -> int:
        """The part of the total that torch's allocator holds: everything but CUDA's context, libraries and graphs."""
        return self.total - self.context - self.graphs

    def __add__(self, other: MemoryPlan) -> MemoryPlan:
        return MemoryPlan(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def parts_mib(self) -> dict[str, float]:
        return {field.name: getattr(self, field.name) / MIB for field in fields(self) if field.name != "num_layers"}


def make_plan(
    shape: ModelShape,
    kernel: KernelSpec,
    capability: tuple[int, int],
    context_tokens: int,
    num_slots: int,
    chunk_tokens: int,
    captured: bool = False,
) -> MemoryPlan:
    """The plan for one GPU of compute `capability`, with room for `num_slots` chats of `context_tokens` each.

    `captured`: for steps in CUDA graphs, over a `shape` with merged matrices.
    """
    activations = activation_bytes(shape, kernel, chunk_tokens, context_tokens, num_slots, shape.is_capturable)
    return MemoryPlan(
        weights=weight_bytes(shape, kernel),
        scratch=kernel.scratch_bytes(shape, capability, chunk_tokens, num_slots),
        kv_cache=state_bytes(shape, context_tokens, num_slots),
        activations=activations,
        pool=pool_bytes(activations, captured),
        workspace=workspace_bytes(capability),
        graphs=graph_bytes(shape, num_slots, chunk_tokens) if captured else 0,
        context=context_bytes(capability),
        loading=kernel.loading_bytes(shape, captured),
    )


def split_plan(
    shape: ModelShape,
    kernel: KernelSpec,
    capabilities: Sequence[tuple[int, int]],
    available_bytes: Sequence[int],
    context_tokens: int,
    num_slots: int,
    chunk_tokens: int,
) -> tuple[MemoryPlan, ...]:
    """One plan a GPU for a model split by layers: each GPU takes layers, in order, until it is full.

    The embedding lies on the first GPU and the head on the last, unless they are one; what no GPU has room for counts
    on the last. A step is plain, with torch's attention.
    """
    whole = replace(
        make_plan(shape, kernel, (0, 0), context_tokens, num_slots, chunk_tokens),
        activations=activation_bytes(shape, kernel, chunk_tokens, context_tokens, num_slots, False),
    )
    embedding_bytes = [
        round_to_block(count * HALF_BYTES) for count in shape.plain_elements if count == shape.vocabulary * shape.hidden
    ]
    # Norms and all else are the layers'.
    layer = -(-(whole.weights - sum(embedding_bytes)) // shape.num_layers)
    kinds = [layer_state_bytes(layer, context_tokens, num_slots) for layer, _ in shape.layers]
    states = [kinds[place] for place in shape.layer_order]
    plans: list[MemoryPlan] = []
    for index, (capability, available) in enumerate(zip(capabilities, available_bytes, strict=True)):
        is_last = index == len(capabilities) - 1
        end = sum(embedding_bytes[:1]) * (index == 0) + sum(embedding_bytes[1:]) * is_last
        empty = replace(
            whole,
            weights=end,
            scratch=kernel.scratch_bytes(shape, capability, chunk_tokens, num_slots),
            kv_cache=0,
            workspace=workspace_bytes(capability),
            context=context_bytes(capability),
        )
        room, count, kept = available - empty.total, 0, 0
        while count < len(states) and (is_last or (count + 1) * layer + kept + states[count] <= room):
            kept += states[count]
            count += 1
        states = states[count:]
        plans.append(replace(empty, weights=end + count * layer, kv_cache=kept, num_layers=count))
    return tuple(plans)


def sum_plans(plans: Sequence[MemoryPlan]) -> MemoryPlan:
    total = plans[0]
    for plan in plans[1:]:
        total = total + plan
    return total


def weight_bytes(shape: ModelShape, kernel: KernelSpec) -> int:
    """The weights as `kernel` keeps them, with everything that is not quantized in half precision, and the room for
    adapters."""
    matrices = sum(count * kernel.matrix_bytes(matrix) for matrix, count in shape.matrices)
    return shape.adapter_bytes + matrices + sum(round_to_block(count * HALF_BYTES) for count in shape.plain_elements)


def state_bytes(shape: ModelShape, context_tokens: int, num_slots: int) -> int:
    """What all layers keep of all chats."""
    return sum(count * layer_state_bytes(layer, context_tokens, num_slots) for layer, count in shape.layers)


def layer_state_bytes(layer: LayerShape, context_tokens: int, num_slots: int) -> int:
    """What one layer keeps of all chats."""
    mixers = [layer.mixer, *([layer.beside] if layer.beside else [])]
    return sum(state_plan(mixer).state_bytes(mixer, context_tokens, num_slots) for mixer in mixers)


def activation_bytes(
    shape: ModelShape,
    kernel: KernelSpec,
    chunk_tokens: int,
    context_tokens: int,
    num_slots: int,
    own_attention: bool,
) -> int:
    """The largest moment of one pass: a chunk's MLP or attention; a plain one's logits and their sampling.

    A Llama's MLP holds the residual, the normed input, and up to three [chunk, intermediate] at once. Steps over our
    own attention sample there too: they keep the logits of all slots in float32, a second time while a captured step is
    checked. For every token of the vocabulary a slot has a byte for whether it was seen, a float32 that is added to its
    logit, and a bit for whether it may come.
    """
    rows = max(chunk_tokens, num_slots)
    base = 2 * rows * shape.hidden * HALF_BYTES
    mlp = max(mlp_bytes(shape, kernel, layer.mlp, rows) for layer, _ in shape.layers)
    mixers = {mixer for layer, _ in shape.layers for mixer in (layer.mixer, layer.beside) if mixer}
    attention = max(state_plan(mixer).activation_bytes(mixer, rows, context_tokens, own_attention) for mixer in mixers)
    if any(layer.beside for layer, _ in shape.layers):
        # One's output waits for the other's.
        attention += rows * shape.hidden * HALF_BYTES
    norms = 3 * rows * shape.hidden * FLOAT_BYTES
    base += adapter_activation_bytes(shape, rows)
    if own_attention:
        sampling = shape.vocabulary * num_slots * (2 * FLOAT_BYTES + HALF_BYTES)
        sampling += (num_slots + 1) * (shape.vocabulary * (FLOAT_BYTES + 1) + -(-shape.vocabulary // 32) * FLOAT_BYTES)
        return base + max(mlp, attention, norms) + sampling
    logits = num_slots * shape.vocabulary * (HALF_BYTES + 6 * FLOAT_BYTES)
    return base + mask_bytes(rows, context_tokens) + max(mlp, attention, norms, logits)


def adapter_activation_bytes(shape: ModelShape, num_rows: int) -> int:
    """Beside one product: what the adapters add to it, in place, and the low-rank rows four times. A step's few rows in
    kernels take less."""
    if not shape.adapters.count:
        return 0
    widest = max((matrix.out_features for matrix, _ in shape.matrices), default=0)
    return num_rows * (widest + 4 * shape.adapters.columns) * HALF_BYTES


def mlp_bytes(shape: ModelShape, kernel: KernelSpec, mlp: Mlp, num_rows: int) -> int:
    """The largest moment of one MLP: up to three [rows, intermediate]. With experts the router's, an expert's or a
    shared expert's, whose output waits for theirs, as a copy of the input may."""
    largest = max((kernel.transient_bytes(matrix, num_rows) for matrix, _ in shape.matrices), default=0)

    def dense(intermediate: int) -> int:
        wide = num_rows * intermediate * HALF_BYTES
        return max(3 * wide, 2 * wide + largest)

    if not isinstance(mlp, Experts):
        return dense(mlp.intermediate)
    routed = max(router_bytes(mlp, shape.hidden, num_rows), kernel.expert_bytes(shape, mlp, num_rows))
    beside = num_rows * shape.hidden * HALF_BYTES * (2 if mlp.shared_intermediate else 1)
    return max(routed, dense(mlp.shared_intermediate)) + beside


def workspace_bytes(capability: tuple[int, int]) -> int:
    """cuBLAS's workspace in torch, in which cublasLt works too, and what the allocator's last segments leave unused.

    cuBLAS: 32 MiB from compute capability 9.0, else 8.1 MiB (pytorch/aten/src/ATen/cuda/CublasHandlePool.cpp; the
    worker's environment says that they are one). Expandable segments grow by 20 MiB, those of small blocks by 2 MiB
    (c10/cuda/CUDACachingAllocator).
    """
    cublas = 32 * MIB if capability >= (9, 0) else 8_519_680
    return cublas + SEGMENT_BYTES + SMALL_SEGMENT_BYTES


def context_bytes(capability: tuple[int, int]) -> int:
    """CUDA's context and the code of libraries and kernels that a run loads, which no allocator counts.

    Measured on an H200 (9.0, driver 580, torch 2.11): 678 MiB with a model loaded, before its steps are captured; 686
    to 698 MiB once every kernel of an uncaptured engine had run.
    Other cards are not measured; the published contexts of older ones are smaller, and no smaller figure is promised.
    """
    return 720 * MIB


def pool_bytes(activations: int, captured: bool) -> int:
    """What lies beside a step's own activations.

    The pool of the captured steps: their activations a second time, because what the same steps took when they ran
    kernel by kernel before stays in the allocator's other segments, and two segments of its own. Without graphs, what
    steps of many sizes leave unused between them: up to 33 MiB on an H200 (the ladder's cases of 2026-11-30).
    """
    if not captured:
        return 2 * SEGMENT_BYTES + SMALL_SEGMENT_BYTES
    return activations + SEGMENT_BYTES + SMALL_SEGMENT_BYTES


def graph_bytes(shape: ModelShape, num_slots: int, chunk_tokens: int) -> int:
    """What CUDA keeps of each captured step: a node for every kernel, about a dozen a layer.

    A recurrent layer without kernels of its own has twice as many more, and as many again for each block of a chunk.
    Adapters are two kernels more for each matrix that is by itself, and in a chunk six of torch's.
    """
    batches, chunks = batch_sizes(num_slots), chunk_sizes(chunk_tokens)
    by_torch = sum(count for layer, count in shape.layers if isinstance(layer.recurrent, Mamba2 | ShortConv))
    pieces = 2 * len(batches) + sum(2 + -(-tokens // DELTA_TOKENS) for tokens in chunks)
    adapted = len(batches) + 3 * len(chunks) if shape.adapters.count else 0
    return ((len(batches) + len(chunks) + adapted) * shape.num_layers + pieces * by_torch) * LAYER_GRAPH_BYTES


def batch_sizes(num_slots: int) -> list[int]:
    """How many chats a captured step writes for at once: powers of two, and all."""
    return sorted({size for size in (1, 2, 4, 8, 16, 32) if size < num_slots} | {num_slots})


def chunk_sizes(chunk_tokens: int) -> list[int]:
    """How many tokens of a prompt a captured step reads: short prompts need not pay for a whole chunk."""
    return [size for size in (16, 32, 64, 128, 256) if size < chunk_tokens] + [chunk_tokens]
