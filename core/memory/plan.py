"""The memory that a model takes on one GPU, part by part, before anything is loaded.

The same plan is the verdict's sum (core/memory/fit.py) and what the worker executes. Every part says where it comes
from. Allocations are rounded to 512 bytes, as torch's allocator does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

from core.checkpoint.layers import Experts, LayerShape, Mlp
from core.checkpoint.recurrent import Mamba2, ShortConv
from core.memory.cache_choice import EVERY_CHAT_FULL, CacheChoice
from core.memory.expert_shapes import router_bytes
from core.memory.kernels.spec import KernelSpec
from core.memory.layer_state import DELTA_TOKENS, mask_bytes, state_plan
from core.memory.model_shape import ModelShape
from core.memory.pages import table_row
from core.memory.sizes import (
    FLOAT_BYTES,
    HALF_BYTES,
    INT_BYTES,
    MIB,
    SEGMENT_BYTES,
    SMALL_SEGMENT_BYTES,
    round_to_block,
)
from core.memory.step_sizes import StepSizes

# How much of a prompt that is scored has its logits at a time, each for the whole vocabulary.
SCORED_TOKENS = 32
# What NVML counts for a captured step, by layer: 50 KiB on an H200 with 7B and 13B, whose layers are 13 kernels.
LAYER_GRAPH_BYTES = 64 * 1024
# Steps of more chats than that multiply by a matrix in three or four launches in place of one or two.
USUAL_ROWS = 64


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
    def while_loading(self) -> int:
        """What is held at most before the cache is there."""
        return self.weights + self.scratch + self.loading + self.workspace + self.graphs + self.context

    @property
    def total(self) -> int:
        """What must be free: the larger of running and loading."""
        return max(self.running, self.while_loading)

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
    sizes: StepSizes,
    captured: bool = False,
    cache: CacheChoice = EVERY_CHAT_FULL,
) -> MemoryPlan:
    """The plan for one GPU of compute `capability`, with room for `num_slots` chats of `context_tokens` each, as far
    as `cache` promises it.

    `captured`: for steps in CUDA graphs, over a `shape` with merged matrices. Steps over our own attention, captured or
    not, have their keys and values in pages, and verify tokens where the model can.
    """
    sizes = sizes if shape.can_verify else sizes.without_verifying
    num_pages = cache.num_pages(num_slots, context_tokens) if shape.is_capturable else None
    activations = activation_bytes(shape, kernel, sizes, context_tokens, num_slots, shape.is_capturable)
    return MemoryPlan(
        weights=weight_bytes(shape, kernel),
        scratch=kernel.scratch_bytes(shape, capability, sizes.chunk_tokens, sizes.rows(num_slots)),
        kv_cache=state_bytes(shape, context_tokens, num_slots, num_pages),
        activations=activations,
        pool=pool_bytes(activations, captured) + (kept_logits_bytes(shape, num_slots) if shape.is_capturable else 0),
        workspace=workspace_bytes(capability),
        graphs=graph_bytes(shape, num_slots, sizes) if captured else 0,
        context=context_bytes(capability),
        loading=kernel.loading_bytes(shape, captured),
    )


def sum_plans(plans: Sequence[MemoryPlan]) -> MemoryPlan:
    total = plans[0]
    for plan in plans[1:]:
        total = total + plan
    return total


def weight_bytes(shape: ModelShape, kernel: KernelSpec) -> int:
    """The weights as `kernel` keeps them, with everything that is not quantized in half precision, and the room for
    adapters."""
    matrices = sum(count * kernel.matrix_bytes(matrix) for matrix, count in shape.matrices)
    return shape.adapter_bytes + matrices + plain_bytes(shape.plain_elements)


@lru_cache(maxsize=64)
def plain_bytes(counts: tuple[int, ...]) -> int:
    """Tensors of so many elements in half precision. There are hundreds, and one verdict asks for dozens of plans."""
    return sum(round_to_block(count * HALF_BYTES) for count in counts)


def state_bytes(shape: ModelShape, context_tokens: int, num_slots: int, num_pages: int | None = None) -> int:
    """What all layers keep of all chats: keys and values in rows by slot, or in `num_pages` pages with their table."""
    layers = sum(
        count * layer_state_bytes(layer, context_tokens, num_slots, num_pages, shape.cache_bits)
        for layer, count in shape.layers
    )
    if num_pages is None:
        return layers
    return layers + table_bytes(num_slots, context_tokens)


def table_bytes(num_slots: int, context_tokens: int) -> int:
    """The table of pages, which each GPU with layers has."""
    return round_to_block((num_slots + 1) * table_row(context_tokens) * INT_BYTES)


def layer_state_bytes(
    layer: LayerShape, context_tokens: int, num_slots: int, num_pages: int | None = None, bits: int = 16
) -> int:
    """What one layer keeps of all chats."""
    mixers = [layer.mixer, *([layer.beside] if layer.beside else [])]
    return sum(state_plan(mixer).state_bytes(mixer, context_tokens, num_slots, num_pages, bits) for mixer in mixers)


def activation_bytes(
    shape: ModelShape,
    kernel: KernelSpec,
    sizes: StepSizes,
    context_tokens: int,
    num_slots: int,
    own_attention: bool,
    draws: bool = True,
) -> int:
    """The largest moment of one pass: a chunk's MLP or attention; a plain one's logits and their sampling. draws:
    whether the GPU has the model's head, which of several only the last one has. Only steps over our own attention
    verify tokens.

    A Llama's MLP holds the residual, the normed input, and up to three [chunk, intermediate] at once. Steps over our
    own attention sample there too: they keep the logits of all rows in float32, a second time while a captured step is
    checked. For every token of the vocabulary a slot has a byte for whether it was seen, a float32 that is added to its
    logit, and a bit for whether it may come. A prompt that is scored has the logits of some tokens in place of the
    chunk's MLP.
    """
    rows = max(sizes.chunk_tokens, num_slots)
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
        if not draws:
            return base + max(mlp, attention, norms)
        sampling = shape.vocabulary * sizes.rows(num_slots) * (2 * FLOAT_BYTES + HALF_BYTES)
        sampling += (num_slots + 1) * (shape.vocabulary * (FLOAT_BYTES + 1) + -(-shape.vocabulary // 32) * FLOAT_BYTES)
        scored = min(sizes.chunk_tokens, SCORED_TOKENS) * shape.vocabulary * HALF_BYTES
        return base + max(mlp, attention, norms, scored) + sampling
    if shape.cache_bits == 8:
        # A plain pass reads a layer's keys and values in half precision.
        read = max((one.num_kv_heads * one.head_dim for one in shape.attentions), default=0)
        attention += 2 * num_slots * context_tokens * read * HALF_BYTES
    logits = num_slots * shape.vocabulary * (HALF_BYTES + 6 * FLOAT_BYTES)
    # One token's at a time are told in float32.
    scored = shape.vocabulary * (min(sizes.chunk_tokens, SCORED_TOKENS) * HALF_BYTES + 3 * FLOAT_BYTES)
    return base + mask_bytes(rows, context_tokens) + max(mlp, attention, norms, logits, scored)


def adapter_activation_bytes(shape: ModelShape, num_rows: int) -> int:
    """Beside one product, to which torch adds in place: low-rank rows, the last matrix's and the next one's, the
    weights of their columns for each row, and whether these are 0. A step's few rows in kernels take less."""
    return 4 * num_rows * shape.adapters.columns * HALF_BYTES


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

    The pool of the captured steps: their activations a second time, for what lies between others and is used by none,
    and for the room of a prompt's experts, which stays while the other layers run; and two segments of its own.
    Without graphs, what steps of many sizes leave unused between them: up to 33 MiB on an H200 (the ladder's cases of
    2026-11-30).
    """
    if not captured:
        return 2 * SEGMENT_BYTES + SMALL_SEGMENT_BYTES
    return activations + SEGMENT_BYTES + SMALL_SEGMENT_BYTES


def kept_logits_bytes(shape: ModelShape, num_slots: int) -> int:
    """Of steps over our own attention the largest has more than USUAL_ROWS: the logits of the next smaller one. Every
    step keeps its own; those of the others lie in what the pool has beside."""
    return shape.vocabulary * USUAL_ROWS * HALF_BYTES if num_slots > USUAL_ROWS else 0


def graph_bytes(shape: ModelShape, num_slots: int, sizes: StepSizes) -> int:
    """What CUDA keeps of each captured step: a node for every kernel, about a dozen a layer. One step verifies tokens.

    A recurrent layer without kernels of its own has twice as many more, and as many again for each block of a chunk.
    Adapters are two kernels more for each matrix that is by itself, and in a chunk four of torch's. A step of more than
    USUAL_ROWS has up to 12 kernels more, and counts as two.
    """
    batches, chunks = batch_sizes(num_slots), chunk_sizes(sizes.chunk_tokens)
    by_torch = sum(count for layer, count in shape.layers if isinstance(layer.recurrent, Mamba2 | ShortConv))
    pieces = 2 * len(batches) + sum(2 + -(-tokens // DELTA_TOKENS) for tokens in chunks)
    verifying = int(sizes.verified_tokens > 0)
    adapted = verifying + len(batches) + 2 * len(chunks) if shape.adapters.count else 0
    steps = verifying + len(batches) + (num_slots > USUAL_ROWS) + len(chunks) + adapted
    return (steps * shape.num_layers + pieces * by_torch) * LAYER_GRAPH_BYTES


def batch_sizes(num_slots: int) -> list[int]:
    """How many chats a captured step writes for at once: powers of two, and all."""
    return sorted({size for size in (1, 2, 4, 8, 16, 32, 64) if size < num_slots} | {num_slots})


def chunk_sizes(chunk_tokens: int) -> list[int]:
    """How many tokens of prompts a captured step reads: short prompts need not pay for a whole chunk."""
    sizes = (16, 32, 64, 128, 256, 512, 768, 1024, 1536, 2048, 3072)
    return [*[size for size in sizes if size < chunk_tokens], chunk_tokens]
