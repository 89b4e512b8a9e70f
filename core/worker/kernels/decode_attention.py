"""Attention of one new token a row over the KV cache: the kernels of cuda/attention.cu.

A row's result does not depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch

from core.memory.kernels.llamadeck import KV_SPLITS
from core.memory.sizes import FLOAT_BYTES, HALF_BYTES
from core.worker.kernels.kv_pages import KvPages, page_defines
from core.worker.kernels.nvrtc import CudaKernel, CudaModule, read_source
from core.worker.kernels.row_layout import IN_ORDER, RowLayout
from core.worker.kernels.shared_memory import SharedMemory

# The most queries of a key that a block computes together: the columns of a tensor core's product. Of large heads, in a
# step of fewer than MANY_ROWS rows, fewer: so small a block begins while the product before it still runs. With 6 each
# 8 chats of Qwen3.5-27B wrote 5 % less on an H200, but the attention of 32 chats took 36 µs instead of 92.
MAX_QUERIES, MAX_EARLY_QUERIES = 8, {64: 8, 128: 8, 256: 2}
MANY_ROWS = 17
# The sizes of a head that the kernels take.
HEAD_DIMS = tuple(MAX_EARLY_QUERIES)
# The warps of a block. Of a cache of 8 bit, whose bytes come in half the time, twice as many compute where several
# queries share a key and few rows leave the GPU room: 33 instead of 44 µs for a token after 32k (Llama-3.1-8B, H200).
# Many short chats were 12 % slower with them.
ATTEND_WARPS, MANY_ATTEND_WARPS = 4, 8
# Columns of the cache that a warp takes at a time: the rows of a tensor core's product.
COLUMNS = 16
# Into how many blocks the columns of a row's head may be split.
SPLITS = (8, 4, 2, 1)
ROPE_THREADS = 256


@dataclass(frozen=True, slots=True)
class HeadKind:
    """What heads of one size are. rotary: how many of their first elements RoPE turns, a multiple of 16. is_normed:
    each query and key is RMS-normed by itself first. is_gated: behind each query lies a gate for its output."""

    dim: int
    rotary: int
    is_normed: bool = False
    is_gated: bool = False

    @property
    def query_heads(self) -> int:
        """How many heads a query takes in a row."""
        return 2 if self.is_gated else 1


class HeadNorm(NamedTuple):
    """RMSNorm of each query and key: weights [dim], epsilon, what is added to each weight."""

    query: torch.Tensor | None = None
    key: torch.Tensor | None = None
    eps: float = 0.0
    offset: float = 0.0


NO_NORM = HeadNorm()


def shared_bytes(
    dim: int, queries: int, blocks: int, pipeline_stages: int, bits: int = 16, warps: int = ATTEND_WARPS
) -> int:
    """Bytes of shared memory for each of the `blocks` that split a head (AttentionShared in cuda/attention.cu): columns
    in flight, heads, sums; of 8 bit scales, those of the new key and value in a piece of 16 bytes."""
    column = 2 * dim * HALF_BYTES if bits == 16 else 2 * (dim + HALF_BYTES)
    in_flight = pipeline_stages * warps * COLUMNS * column
    heads = (queries + 2) * dim * HALF_BYTES + (0 if bits == 16 else 16)
    parts = KV_SPLITS // blocks
    sums = (warps - 1 + parts) * dim + 2 * (warps + parts)
    return in_flight + heads + sums * queries * FLOAT_BYTES


def choose_pipeline_stages(
    dim: int, queries: int, blocks: int, room: SharedMemory, bits: int = 16, warps: int = ATTEND_WARPS
) -> int | None:
    """How many loads of columns a warp has in flight, at most 3, or 2 where 4 or more blocks split a head: as many as
    two blocks on a multiprocessor have room for, else as one alone has; None where it has room for none. Of 8 bit twice
    as many, which are as many bytes; of twice as many warps at least two."""
    most = 2 if blocks >= 4 else 3
    each, least = (16 // bits, 1) if warps == ATTEND_WARPS else (1, 2)
    numbers = [n * each for n in range(most, least - 1, -1)]
    fitting = (
        n
        for room_bytes in (room.half_bytes, room.block_bytes)
        for n in numbers
        if shared_bytes(dim, queries, blocks, n, bits, warps) <= room_bytes
    )
    return next(fitting, None)


def plan_blocks(
    group: int,
    dim: int,
    splits: Sequence[int],
    room: SharedMemory,
    bits: int = 16,
    most: int = MAX_QUERIES,
    warps: int = ATTEND_WARPS,
) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Of the `group` of queries that share a key, how many a block computes together, so that it reads the key once for
    them: the most that divide them evenly and that there is room for, up to `most`. And the loads in flight by each of
    `splits`."""
    for queries in range(min(group, most), 0, -1):
        stages = [choose_pipeline_stages(dim, queries, blocks, room, bits, warps) for blocks in splits]
        if group % queries == 0 and None not in stages:
            return queries, tuple((blocks, n) for blocks, n in zip(splits, stages, strict=True) if n is not None)
    raise ValueError(f"attention with heads of {dim}")


def choose_attend_warps(
    group: int, dim: int, splits: Sequence[int], room: SharedMemory, bits: int, most: int = MAX_QUERIES
) -> int:
    """For steps of fewer than MANY_ROWS rows: MANY_ATTEND_WARPS where they pay and have room without reading a key more
    often."""
    if bits == 16 or group == 1:
        return ATTEND_WARPS
    queries, _ = plan_blocks(group, dim, splits, room, bits, most)
    stages = (choose_pipeline_stages(dim, queries, blocks, room, bits, MANY_ATTEND_WARPS) for blocks in splits)
    return ATTEND_WARPS if None in stages else MANY_ATTEND_WARPS


def choose_blocks(head_groups: int, most_blocks: Mapping[int, int]) -> int:
    """Into how many blocks each of `head_groups` is split: the first number whose blocks all run at once (`most_blocks`
    by number), else the fewest."""
    return next((blocks for blocks, most in most_blocks.items() if blocks * head_groups <= most), min(most_blocks))


@cache
def module_for(
    dtype: torch.dtype,
    kind: HeadKind,
    queries: int,
    pipeline_stages: tuple[tuple[int, int], ...],
    clusters: bool,
    device: torch.device,
    bits: int,
    warps: int,
) -> CudaModule:
    """The compiled kernels. pipeline_stages: pairs (blocks that split a head, loads in flight), a kernel for each.
    bits: of the cache. warps: of a block."""
    lines = (f"ATTEND({blocks}, {times})" for blocks, times in pipeline_stages)
    source = read_source("hopper.cuh", "pages.cuh", "attention.cu", ATTENDS=lines)
    defines = {"BF16": int(dtype == torch.bfloat16), "DIM": kind.dim, "QUERIES": queries, "CLUSTERS": int(clusters)}
    defines |= {"ROTARY": kind.rotary, "HEAD_NORM": int(kind.is_normed), "GATED": int(kind.is_gated)}
    defines |= {"ATTEND_WARPS": warps, "COLUMNS": COLUMNS, "KV_SPLITS": KV_SPLITS, **page_defines(bits)}
    return CudaModule(source, defines, device)


@dataclass(frozen=True, slots=True)
class SplitKernels:
    """Kernels by the blocks that split a head, of which each computes `queries` together with so many `threads`; how
    many blocks of each run at once."""

    queries: int
    threads: int
    kernels: Mapping[int, CudaKernel]
    most_blocks: Mapping[int, int]


def split_kernels(
    module: CudaModule,
    dim: int,
    queries: int,
    stages: Sequence[tuple[int, int]],
    bits: int,
    multiprocessors: int,
    warps: int,
) -> SplitKernels:
    """Of the module that `module_for` gives for `queries` and `stages`."""
    kernels = {
        blocks: module.kernel(f"attend_{blocks}", shared_bytes(dim, queries, blocks, times, bits, warps))
        for blocks, times in stages
    }
    # Blocks of a cluster are neighbours on the GPU, so clusters of 4 and more leave some places empty.
    most_blocks = {
        blocks: kernel.most_blocks(warps * 32) - (multiprocessors // 2 if blocks > 2 else 0)
        for blocks, kernel in kernels.items()
    }
    return SplitKernels(queries, warps * 32, kernels, most_blocks)


class DecodeKernels:
    """For one model on one GPU: its heads, and how many rows a step has at most. All layers share the buffers."""

    def __init__(
        self,
        dtype: torch.dtype,
        heads: tuple[int, int],
        dim: int,
        num_rows: int,
        device: torch.device,
        splits: Sequence[int] = SPLITS,
        clusters: bool | None = None,
        kind: HeadKind | None = None,
        bits: int = 16,
    ) -> None:
        """heads: (query heads, KV heads) of `dim`. kind: None for plain ones, turned as a whole. splits: into how many
        blocks a head may be split. clusters: whether those read one another's shared memory; None: where the GPU can.
        bits: of the cache. Raises CudaCodeError, ValueError where a head is too large for the GPU."""
        self.num_heads, self.num_kv_heads, self.dim = *heads, dim
        self.kind = HeadKind(dim, dim) if kind is None else kind
        properties = torch.cuda.get_device_properties(device)
        clusters = properties.major >= 9 if clusters is None else clusters
        room = SharedMemory.of(device)

        group, multiprocessors = heads[0] // heads[1], properties.multi_processor_count

        def planned(most: int, warps: int) -> tuple[CudaModule, SplitKernels]:
            queries, stages = plan_blocks(group, dim, splits, room, bits, most, warps)
            module = module_for(dtype, self.kind, queries, stages, clusters, device, bits, warps)
            return module, split_kernels(module, dim, queries, stages, bits, multiprocessors, warps)

        early = MAX_EARLY_QUERIES[dim]
        module, self._few_rows = planned(early, choose_attend_warps(group, dim, splits, room, bits, early))
        self._many_rows = planned(MAX_QUERIES, ATTEND_WARPS)[1] if num_rows >= MANY_ROWS else self._few_rows
        self._apply_rope_and_store_kv = module.kernel("apply_rope_and_store_kv")
        self._gate = module.kernel("gate_heads")
        shape = (0,) if clusters else (num_rows, self.num_heads, KV_SPLITS)
        self._parts = torch.empty((*shape, dim), dtype=torch.float32, device=device)
        self._tops = torch.empty(shape, dtype=torch.float32, device=device)
        self._totals = torch.empty(shape, dtype=torch.float32, device=device)
        self._ended = torch.zeros(num_rows * self.num_heads, dtype=torch.int32, device=device)

    def attend(
        self,
        qkv: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        cache: KvPages,
        slots: torch.Tensor,
        columns: torch.Tensor,
        scale: float,
        window: int,
        layout: RowLayout = IN_ORDER,
        norm: HeadNorm = NO_NORM,
        sinks: torch.Tensor | None = None,
        starts_early: bool = True,
    ) -> torch.Tensor:
        """qkv [rows, (heads + 2 kv heads) * dim] of one new token a row -> [rows, heads * dim] in `layout`. Gated
        queries come with their gates: [rows, heads, 2, dim], then the others.

        angles: cosines and sines [rows or 1, 1, rotary], applied to query and key. sinks [heads]: scores that belong to
        no column (arXiv 2309.17453). cache: a layer's keys and values;
        the new key and value go to each row's slot and column. A column below 0 gives
        zeros and stores nothing. scale: of the scores. window: how many columns a token sees at most. starts_early:
        whether the kernel before wrote none of the columns below those of the rows.
        """
        rows, (cos, sin) = qkv.shape[0], angles
        out = layout.empty(rows, self.num_heads * self.dim, qkv)
        attend = self._many_rows if rows >= MANY_ROWS else self._few_rows
        head_groups = self.num_heads // attend.queries
        blocks = choose_blocks(head_groups * rows, attend.most_blocks)
        attend.kernels[blocks](
            (blocks, head_groups, rows), attend.threads, qkv, cos, sin, cache.argument, slots, columns, self._parts,
            self._tops, self._totals, self._ended, out, *layout, cos.stride(0) if cos.shape[0] > 1 else 0,
            float(scale), window, self.num_heads, self.num_kv_heads, *norm, sinks, starts_early=starts_early,
        )  # fmt: skip
        return out

    def apply_rope_and_store_kv(
        self,
        qkv: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        cache: KvPages,
        slots: torch.Tensor,
        columns: torch.Tensor,
        norm: HeadNorm = NO_NORM,
    ) -> torch.Tensor:
        """Norm and RoPE for qkv [tokens, (heads + 2 kv heads) * dim] of new tokens of prompts, in place -> queries [1,
        heads, tokens, dim].

        angles: [1, tokens, rotary]. Keys and values go into `cache` as in `attend`, at `columns` [1, tokens] of `slots`
        [tokens].
        """
        tokens, (cos, sin) = qkv.shape[0], angles
        # A thread takes 16 elements.
        threads = tokens * (self.num_heads + 2 * self.num_kv_heads) * self.dim // 16
        self._apply_rope_and_store_kv(
            (-(-threads // ROPE_THREADS), 1, 1), ROPE_THREADS, qkv, cos, sin, cache.argument, slots, columns,
            cos.stride(1), tokens, self.num_heads, self.num_kv_heads, *norm,
        )  # fmt: skip
        queries = qkv.view(tokens, -1, self.dim)[:, : self.num_heads * self.kind.query_heads : self.kind.query_heads]
        return queries.transpose(0, 1).unsqueeze(0)

    def gate(self, attended: torch.Tensor, qkv: torch.Tensor) -> torch.Tensor:
        """attended [1, tokens, heads, dim] times the sigmoids of the gates in `qkv`, in place."""
        tokens, threads = qkv.shape[0], attended.numel() // 8
        self._gate(
            (-(-threads // ROPE_THREADS), 1, 1), ROPE_THREADS, attended, qkv, tokens, self.num_heads, self.num_kv_heads
        )
        return attended
