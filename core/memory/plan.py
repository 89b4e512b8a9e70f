"""The memory that a model takes on one GPU, part by part, before anything is loaded; knows no torch, no NVML, no page.

The same plan is the verdict's sum (core/memory/fit.py) and what the worker executes. Every part says where it comes
from. Allocations are rounded to 512 bytes, as torch's allocator does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from core.memory.model_shape import MatrixShape, ModelShape
from core.memory.sizes import (
    BLOCK_BYTES,
    FLOAT_BYTES,
    HALF_BYTES,
    INT_BYTES,
    MIB,
    SEGMENT_BYTES,
    SMALL_SEGMENT_BYTES,
    round_to_block,
)

# How much of a prompt the engine reads at once on a GPU; the plan holds room for that much.
GPU_CHUNK_TOKENS = 512
# gptqmodel's ExllamaV2Linear.scratch_space_fixed rounds each of its two terms up by this much.
EXLLAMA_PAD_BYTES = 128
# The engine's own kernel writes a matrix out for a chunk in pieces of this: enough outputs at once for a large card.
DECK_WRITTEN_BYTES = 192 * MIB
# Where it reads the codes instead, blocks of threads add up sums of 128 rows and 256 outputs for one another, one a
# multiprocessor: 132 is the largest card's of compute capability 9.0.
PROMPT_BLOCKS = 132
PROMPT_PIECE_ROWS = 128
PROMPT_SUM_BYTES = PROMPT_PIECE_ROWS * 256 * FLOAT_BYTES
# Into how many parts the columns of a slot are shared out, in that kernel's attention (cuda/attention.cu).
ATTENTION_PARTS = 8
# What NVML counts for a captured step, by layer: 50 KiB on an H200 with 7B and 13B, whose layers are 13 kernels.
LAYER_GRAPH_BYTES = 64 * 1024
# Marlin sums in float32 in a tile for each multiprocessor: SMs * 64 * 256 values; 170 SMs is the largest card's.
MARLIN_REDUCE_BYTES = 170 * 64 * 256 * FLOAT_BYTES


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
    kernel: str,
    capability: tuple[int, int],
    context_tokens: int,
    num_slots: int,
    chunk_tokens: int,
    captured: bool = False,
) -> MemoryPlan:
    """The plan for one GPU of compute `capability`, with room for `num_slots` chats of `context_tokens` each.

    `captured`: for steps in CUDA graphs, over a `shape` with merged matrices.
    """
    activations = plain = activation_bytes(shape, kernel, chunk_tokens, context_tokens, num_slots)
    if captured:
        activations = captured_activation_bytes(shape, kernel, chunk_tokens, num_slots)
    return MemoryPlan(
        weights=weight_bytes(shape, kernel),
        scratch=scratch_bytes(shape, kernel, capability, chunk_tokens, num_slots),
        kv_cache=kv_cache_bytes(shape, context_tokens, num_slots),
        activations=activations,
        pool=pool_bytes(max(activations, plain)) if captured else 0,
        workspace=workspace_bytes(capability),
        graphs=graph_bytes(shape, num_slots, chunk_tokens) if captured else 0,
        context=context_bytes(capability),
        loading=loading_bytes(shape, kernel, captured),
    )


def split_plan(
    shape: ModelShape,
    kernel: str,
    capabilities: Sequence[tuple[int, int]],
    available_bytes: Sequence[int],
    context_tokens: int,
    num_slots: int,
    chunk_tokens: int,
) -> tuple[MemoryPlan, ...]:
    """One plan a GPU for a model split by layers: each GPU takes layers, in order, until it is full.

    The embedding lies on the first GPU and the head on the last, unless they are one; what no GPU has room for counts
    on the last. A step is plain.
    """
    whole = make_plan(shape, kernel, (0, 0), context_tokens, num_slots, chunk_tokens)
    ends = [
        round_to_block(count * HALF_BYTES) for count in shape.plain_elements if count == shape.vocabulary * shape.hidden
    ]
    # Norms and all else are the layers'.
    layer = -(-(whole.weights - sum(ends)) // shape.num_layers)
    layer_cache = whole.kv_cache // shape.num_layers
    plans: list[MemoryPlan] = []
    left = shape.num_layers
    for index, (capability, available) in enumerate(zip(capabilities, available_bytes, strict=True)):
        is_last = index == len(capabilities) - 1
        end = sum(ends[:1]) * (index == 0) + sum(ends[1:]) * is_last
        empty = replace(
            whole,
            weights=end,
            scratch=scratch_bytes(shape, kernel, capability, chunk_tokens, num_slots),
            kv_cache=0,
            workspace=workspace_bytes(capability),
            context=context_bytes(capability),
        )
        room = max(0, (available - empty.total) // (layer + layer_cache))
        count = left if is_last else min(left, room)
        left -= count
        plans.append(replace(empty, weights=end + count * layer, kv_cache=count * layer_cache, num_layers=count))
    return tuple(plans)


def sum_plans(plans: Sequence[MemoryPlan]) -> MemoryPlan:
    total = plans[0]
    for plan in plans[1:]:
        total = total + plan
    return total


def weight_bytes(shape: ModelShape, kernel: str) -> int:
    """The weights as `kernel` keeps them, with everything that is not quantized in half precision."""
    matrices = sum(count * matrix_bytes(matrix, kernel) for matrix, count in shape.matrices)
    return matrices + sum(round_to_block(count * HALF_BYTES) for count in shape.plain_elements)


def matrix_bytes(matrix: MatrixShape, kernel: str) -> int:
    """One quantized matrix: codes [in * bits / 32, out], zeros [groups, out * bits / 32], scales [groups, out].

    The engine's own kernel keeps codes and scales, zeros only where they are not all 8.
    ExLlamaV2, Triton and Torch keep the checkpoint's own parts; ExLlamaV2 adds a permutation and its inverse (2 bytes
    an input) with act-order. Marlin drops the zeros, and the group index unless groups are in act-order.
    """
    codes = round_to_block(matrix.in_features * matrix.out_features * matrix.bits // 8)
    zeros = round_to_block(matrix.groups * math.ceil(matrix.out_features * matrix.bits / 32) * INT_BYTES)
    scales = round_to_block(matrix.groups * matrix.out_features * HALF_BYTES)
    index = round_to_block(matrix.in_features * INT_BYTES)
    bias = round_to_block(matrix.out_features * HALF_BYTES) if matrix.has_bias else 0
    if kernel == "deck":
        # Scales and zeros in half precision; an order and where it puts each input.
        ordered = 2 * index if matrix.act_order and matrix.groups > 1 else 0
        return codes + scales * (1 if matrix.symmetric else 2) + ordered + bias
    if kernel == "marlin":
        ordered = 2 * index if matrix.act_order and matrix.groups > 1 else 0
        return codes + scales + ordered + bias + BLOCK_BYTES * 2
    permutation = 2 * round_to_block(matrix.in_features * 2) if kernel == "exllama_v2" and matrix.act_order else 0
    return codes + zeros + scales + index + permutation + bias


def scratch_bytes(
    shape: ModelShape, kernel: str, capability: tuple[int, int], chunk_tokens: int, num_slots: int
) -> int:
    """What a kernel keeps beside the weights, for all of them.

    ExLlamaV2: room to write the largest matrix out in half precision, and for a product in float32. The engine's own:
    room for a piece of one, or for the sums that its blocks of threads add up for one another, and what those of its
    attention do.
    """
    if kernel == "deck":
        if takes_prompts_from_codes(capability):
            shared = PROMPT_BLOCKS * PROMPT_SUM_BYTES + round_to_block(PROMPT_BLOCKS * INT_BYTES)
        else:
            largest = max((matrix.in_features * matrix.out_features for matrix, _ in shape.matrices), default=0)
            shared = round_to_block(written_bytes(largest))
        return shared + attention_bytes(shape, num_slots)
    if kernel != "exllama_v2":
        return 0
    return max(
        matrix.in_features * matrix.out_features * HALF_BYTES
        + matrix.out_features * chunk_tokens * FLOAT_BYTES
        + 2 * EXLLAMA_PAD_BYTES
        for matrix, _ in shape.matrices
    )


def takes_prompts_from_codes(capability: tuple[int, int]) -> bool:
    """Whether the GPU has the tensor cores for which the engine's own kernel need not write a matrix out."""
    return capability == (9, 0)


def written_bytes(num_elements: int) -> int:
    """The room in which the engine's own kernel writes out matrices of at most `num_elements`, piece by piece."""
    return min(num_elements * HALF_BYTES, DECK_WRITTEN_BYTES)


def attention_bytes(shape: ModelShape, num_slots: int) -> int:
    """For each head of each slot and each part of its columns a sum of values, its weight and its largest score, in
    float32, where blocks of threads cannot read one another's; and a counter a head."""
    heads = num_slots * shape.num_heads
    sums = round_to_block(heads * ATTENTION_PARTS * shape.head_dim * FLOAT_BYTES)
    return sums + 2 * round_to_block(heads * ATTENTION_PARTS * FLOAT_BYTES) + round_to_block(heads * INT_BYTES)


def kv_cache_bytes(shape: ModelShape, context_tokens: int, num_slots: int) -> int:
    """Keys and values, half precision: layers * 2 * slots * kv heads * (context + 1) * head size * 2 bytes."""
    one = num_slots * shape.num_kv_heads * (context_tokens + 1) * shape.head_dim * HALF_BYTES
    return 2 * shape.num_layers * round_to_block(one)


def activation_bytes(shape: ModelShape, kernel: str, chunk_tokens: int, context_tokens: int, num_slots: int) -> int:
    """The largest moment of one plain pass: a chunk's MLP or attention, or the logits and their sampling.

    A Llama's MLP holds the residual, the normed input, and up to three [chunk, intermediate] at once; attention holds
    queries, keys and values twice around the rotation, and the cache's heads repeated where queries share them.
    """
    rows = max(chunk_tokens, num_slots)
    base = 2 * rows * shape.hidden * HALF_BYTES
    wide = rows * shape.intermediate * HALF_BYTES
    largest = max((transient_bytes(matrix, kernel, rows) for matrix, _ in shape.matrices), default=0)
    mlp = max(3 * wide, 2 * wide + largest)
    queries = rows * shape.num_heads * shape.head_dim * HALF_BYTES
    repeats = shape.num_heads // shape.num_kv_heads
    repeated = 2 * context_tokens * shape.num_heads * shape.head_dim * HALF_BYTES if repeats > 1 else 0
    mask = 2 * rows * (context_tokens + 8) * HALF_BYTES
    attention = 5 * queries + repeated + mask
    norms = 3 * rows * shape.hidden * FLOAT_BYTES
    logits = num_slots * shape.vocabulary * (HALF_BYTES + 6 * FLOAT_BYTES)
    return base + mask + max(mlp, attention, norms, logits)


def captured_activation_bytes(shape: ModelShape, kernel: str, chunk_tokens: int, num_slots: int) -> int:
    """The largest moment of a captured step, a chunk's MLP or attention, and what drawing tokens needs.

    A Llama's MLP holds the residual, the normed input, and three [chunk, intermediate] at once; attention holds
    queries, keys, values, its output and what that becomes. The logits of all slots are kept in float32, with a byte
    for every token of the vocabulary that a slot has seen; a second time while the captured step is checked.
    """
    rows = max(chunk_tokens, num_slots)
    base = 2 * rows * shape.hidden * HALF_BYTES
    wide = rows * shape.intermediate * HALF_BYTES
    largest = max((transient_bytes(matrix, kernel, rows) for matrix, _ in shape.matrices), default=0)
    mlp = max(3 * wide, 2 * wide + largest)
    attention = 5 * rows * shape.num_heads * shape.head_dim * HALF_BYTES
    norms = 3 * rows * shape.hidden * FLOAT_BYTES
    drawing = shape.vocabulary * (num_slots * (2 * FLOAT_BYTES + HALF_BYTES) + num_slots + 1)
    return base + max(mlp, attention, norms) + drawing


def transient_bytes(matrix: MatrixShape, kernel: str, rows: int) -> int:
    """What a kernel needs for the moment of one product, beside its input and output."""
    written_out = matrix.in_features * matrix.out_features * HALF_BYTES
    if kernel == "triton":
        return written_out
    if kernel == "torch":
        # Codes as 4-byte words, and the result, while it is being written out.
        return written_out + 2 * matrix.in_features * matrix.out_features * INT_BYTES
    if kernel == "deck":
        # Rows as its products take them, whole pieces of them; at most, where only an order changes.
        return -(-rows // PROMPT_PIECE_ROWS) * PROMPT_PIECE_ROWS * matrix.in_features * HALF_BYTES
    reordered = rows * matrix.in_features * HALF_BYTES if matrix.act_order else 0
    if kernel == "marlin":
        return MARLIN_REDUCE_BYTES + reordered
    return 0


def workspace_bytes(capability: tuple[int, int]) -> int:
    """cuBLAS's and cublasLt's workspaces in torch, and what the allocator's last segments leave unused.

    cuBLAS: 32 MiB from compute capability 9.0, else 8.1 MiB; cublasLt: 32 MiB, 4 MiB on 8.x, else 1 MiB
    (pytorch/aten/src/ATen/cuda/CublasHandlePool.cpp). Expandable segments grow by 20 MiB, those of small blocks by
    2 MiB (c10/cuda/CUDACachingAllocator).
    """
    cublas = 64 * MIB if capability >= (9, 0) else 8_519_680 + (4 * MIB if capability[0] == 8 else MIB)
    return cublas + SEGMENT_BYTES + SMALL_SEGMENT_BYTES


def context_bytes(capability: tuple[int, int]) -> int:
    """CUDA's context and the code of libraries and kernels that a run loads, which no allocator counts.

    Measured on an H200 (9.0, driver 580, torch 2.11): 678 MiB with a model loaded, before its steps are captured; 686
    to 698 MiB once every kernel of an uncaptured engine had run.
    Other cards are not measured; the published contexts of older ones are smaller, and no smaller figure is promised.
    """
    return 720 * MIB


def pool_bytes(activations: int) -> int:
    """The pool of the captured steps: their activations a second time, because what the same steps took when they ran
    plainly before stays in the allocator's other segments, and two segments of its own.

    Never less than plain steps need, which take over where the steps of a model turn out not to be capturable.
    """
    return activations + SEGMENT_BYTES + SMALL_SEGMENT_BYTES


def graph_bytes(shape: ModelShape, num_slots: int, chunk_tokens: int) -> int:
    """What CUDA keeps of each captured step: a node for every kernel, about a dozen a layer."""
    num_graphs = len(batch_sizes(num_slots)) + len(chunk_sizes(chunk_tokens))
    return num_graphs * shape.num_layers * LAYER_GRAPH_BYTES


def loading_bytes(shape: ModelShape, kernel: str, merged: bool) -> int:
    """What finishing a matrix needs for a moment: Marlin and the engine's own kernel write its codes anew, from a
    staging buffer, and what is merged is read first and then put where it stays."""
    if kernel not in ("marlin", "deck") and not merged:
        return 0
    return max(
        round_to_block(matrix.in_features * matrix.out_features * matrix.bits // 8) for matrix, _ in shape.matrices
    )


def batch_sizes(num_slots: int) -> list[int]:
    """How many chats a captured step writes for at once: powers of two, and all."""
    return sorted({size for size in (1, 2, 4, 8, 16, 32) if size < num_slots} | {num_slots})


def chunk_sizes(chunk_tokens: int) -> list[int]:
    """How many tokens of a prompt a captured step reads: short prompts need not pay for a whole chunk."""
    return [size for size in (16, 32, 64, 128, 256) if size < chunk_tokens] + [chunk_tokens]
