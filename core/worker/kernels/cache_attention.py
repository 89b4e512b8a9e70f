"""Attention over the slots' KV cache, of one token a row and of chunks of prompts: the kernels of
cuda/cache_attention.cu, and of cuda/prompt_attention.cu on compute capability 9.0.

For models whose layers are not fused (decode_attention.py), and for their chunks. Both read slots and positions from
GPU memory, as step_ops.py says. A row's result does not depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import torch

from core.memory.kernels.llamadeck import has_fused_prefill
from core.memory.sizes import FLOAT_BYTES, HALF_BYTES
from core.worker.kernels.kv_pages import KvPages, page_defines
from core.worker.kernels.nvrtc import CudaKernel, CudaModule, read_source
from core.worker.kernels.shared_memory import SharedMemory

# Columns of the cache that a block takes at a time: the most whose shared memory leaves room for two blocks.
COLUMNS = (64, 32, 16)
# Queries of a warp, and warps of a block that takes a chunk's.
WARP_QUERIES, CHUNK_WARPS = 16, 4
COMBINE_THREADS = 128
# Into how many splits the columns of a row are divided at most: a lane each when they are merged. With all slots'
# splits there are no more than MAX_SPLIT_ROWS, which take less than a chunk's queries, keys and values in the plan.
MAX_SPLITS, MAX_SPLIT_ROWS = 32, 1024


# Heads that chunks of prompts are multiplied with by wgmma (cuda/prompt_attention.cu), with the columns that a block
# takes at a time; its queries, and its threads.
PROMPT_COLUMNS = {64: 128, 128: 128, 256: 64}
PROMPT_QUERIES, PROMPT_THREADS, PROMPT_STAGES = 128, 384, 2


class ChunkKernel(NamedTuple):
    """Attention of chunks, by blocks of `threads` which take `queries` tokens each."""

    run: CudaKernel
    queries: int
    threads: int


class CacheAttention(NamedTuple):
    """The compiled kernels for heads of one size, and the columns that a block of `split` takes at a time."""

    chunk: ChunkKernel
    split: CudaKernel
    combined: CudaKernel
    columns: int


def shared_bytes(dim: int, warps: int, columns: int, bits: int = 16) -> int:
    """Bytes of a block's shared memory (Tiles in cuda/cache_attention.cu): its queries, keys and values; of 8 bit their
    scales."""
    row = -(-dim // 16) * 16 + 8
    scales = 2 * columns * FLOAT_BYTES if bits == 8 else 0
    return (warps * WARP_QUERIES + 2 * columns) * row * HALF_BYTES + scales


def choose_columns(dim: int, room: SharedMemory, bits: int = 16) -> int:
    """How many columns a block takes at a time: as two blocks on a multiprocessor have room for, else one. Raises
    ValueError where a head is too large for the GPU."""
    for most in (room.half_bytes, room.block_bytes):
        for columns in COLUMNS:
            if shared_bytes(dim, CHUNK_WARPS, columns, bits) <= most:
                return columns
    raise ValueError(f"attention with heads of {dim}")


@cache
def kernels_for(dtype: torch.dtype, dim: int, device: torch.device, bits: int = 16) -> CacheAttention:
    """Raises TypeError or ValueError for what they do not take, CudaCodeError where they do not compile."""
    if dtype not in (torch.float16, torch.bfloat16) or dim % 2:
        raise TypeError(f"attention in {dtype} with heads of {dim}")
    columns = choose_columns(dim, SharedMemory.of(device), bits)
    defines = {"BF16": int(dtype == torch.bfloat16), "DIM": dim, **page_defines(bits)}
    source = read_source("fragments.cuh", "pages.cuh", "chunk_tiles.cuh", "cache_attention.cu")
    module = CudaModule(source, {**defines, "COLUMNS": columns}, device)
    if dim in PROMPT_COLUMNS and has_fused_prefill(torch.cuda.get_device_capability(device)):
        chunk = _prompt_kernel(defines, device)
    else:
        run = module.kernel("attend_chunks", shared_bytes(dim, CHUNK_WARPS, columns, bits))
        chunk = ChunkKernel(run, CHUNK_WARPS * WARP_QUERIES, CHUNK_WARPS * 32)
    split = module.kernel("attend_split", shared_bytes(dim, 1, columns, bits))
    return CacheAttention(chunk, split, module.kernel("attend_combined"), columns)


def _prompt_kernel(defines: Mapping[str, int], device: torch.device) -> ChunkKernel:
    """Of compute capability 9.0."""
    dim, bits = defines["DIM"], defines["CACHE_BITS"]
    columns = PROMPT_COLUMNS[dim]
    names = ("hopper.cuh", "warpgroup_products.cuh", "pages.cuh", "chunk_tiles.cuh", "prompt_attention.cu")
    module = CudaModule(read_source(*names), {**defines, "COLUMNS": columns}, device)
    run = module.kernel("attend_prompts", prompt_shared_bytes(dim, columns, bits))
    return ChunkKernel(run, PROMPT_QUERIES, PROMPT_THREADS)


def prompt_shared_bytes(dim: int, columns: int, bits: int) -> int:
    """Bytes of a block's shared memory (Room in cuda/prompt_attention.cu), aligned to 1024: its queries; keys and
    values in flight, of 8 bit with their scales; their barriers."""
    each = 2 * PROMPT_STAGES
    halves = PROMPT_QUERIES * dim + each * columns * dim
    return 1024 + halves * HALF_BYTES + (each * columns * FLOAT_BYTES if bits == 8 else 0) + 2 * each * 8


def num_splits(num_slots: int, context_tokens: int, columns: int) -> int:
    """Into how many splits a row's columns are divided: the same for a step of one chat and of all."""
    most = min(MAX_SPLITS, max(1, MAX_SPLIT_ROWS // num_slots))
    return min(most, -(-context_tokens // columns))


def num_tiles(num_tokens: int, num_chunks: int, tile_tokens: int) -> int:
    """The most tiles of queries that so many chunks, and the rows behind them, have: each but one may waste a part."""
    return -(-num_tokens // tile_tokens) + min(num_chunks, num_tokens)


def attend_decode(
    query: torch.Tensor,
    cache: KvPages,
    slots: torch.Tensor,
    ends: torch.Tensor,
    scale: float,
    window: int,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of one new token a row over its slot's first `ends` [rows] columns.

    query [rows, heads, 1, dim] -> [rows, 1, heads, dim]. cache: a layer's keys and values.
    window: how many columns a token sees at most. sinks [heads]: scores that belong to no column (arXiv 2309.17453).
    Several blocks split a row's columns (arXiv 2311.01282).
    """
    rows, num_heads, _, dim = query.shape
    num_kv_heads, group = cache.num_kv_heads, num_heads // cache.num_kv_heads
    query, sinks = _readable(query, cache.dtype), None if sinks is None else sinks.to(cache.dtype)
    kernels = kernels_for(query.dtype, dim, query.device, cache.bits)
    splits = num_splits(cache.num_slots, cache.num_columns, kernels.columns)
    parts = torch.empty((rows, num_heads, splits, dim), dtype=torch.float32, device=query.device)
    tops, totals = torch.empty((2, rows, num_heads, splits), dtype=torch.float32, device=query.device)
    out = torch.empty((rows, 1, num_heads, dim), dtype=query.dtype, device=query.device)
    blocks = num_kv_heads * -(-group // WARP_QUERIES)
    kernels.split(
        (splits, blocks, rows), 32, query, cache.argument, slots, ends, parts, tops, totals, query.stride(0),
        query.stride(1), float(scale), window, num_heads, group,
    )  # fmt: skip
    kernels.combined((rows * num_heads, 1, 1), COMBINE_THREADS, parts, tops, totals, out, splits, sinks, num_heads)
    return out


def attend_prefill(
    query: torch.Tensor,
    cache: KvPages,
    chunks: torch.Tensor,
    scale: float,
    window: int,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of new tokens of several chats, each over its slot.

    query [1, heads, tokens, dim] -> [1, tokens, heads, dim]. chunks [chunks, 4]: slot, first column, tokens, first
    row, one chunk's rows behind the other's; the others' results are zeros. The rest as for `attend_decode`.
    """
    _, num_heads, num_tokens, dim = query.shape
    query, sinks = _readable(query, cache.dtype), None if sinks is None else sinks.to(cache.dtype)
    kernels = kernels_for(query.dtype, dim, query.device, cache.bits)
    out = torch.empty((1, num_tokens, num_heads, dim), dtype=query.dtype, device=query.device)
    chunk = kernels.chunk
    chunk.run(
        (num_tiles(num_tokens, chunks.shape[0], chunk.queries), num_heads, 1), chunk.threads, query, cache.argument,
        chunks, out, query.stride(1), query.stride(2), float(scale), window, num_tokens,
        num_heads // cache.num_kv_heads, cache.num_columns, sinks, chunks.shape[0],
    )  # fmt: skip
    return out


def _readable(query: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`query` in the cache's type, copied where its heads do not begin on 16 bytes as the kernels read them."""
    query = query.to(dtype)
    is_aligned = query.data_ptr() % 16 == 0 and all(stride % 8 == 0 for stride in query.stride()[:3])
    return query if is_aligned or query.shape[3] % 8 else query.contiguous()
