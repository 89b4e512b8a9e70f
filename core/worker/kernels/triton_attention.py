"""Attention over the slots' KV cache in Triton: of one token a row, and of a chunk of one prompt.

Both read slots and positions from GPU memory, as triton_ops.py says.
"""

# mypy: disable-error-code="no-untyped-def, attr-defined, import-not-found, no-any-return"
# Triton reads a kernel's arguments by what they are called with; annotations other than its own confuse it.
from __future__ import annotations

import torch
import triton
import triton.language as tl

# Columns of the cache that a program takes at a time, and queries of a chunk.
ATTEND_KEYS = 64
PREFILL_QUERIES = 64
# Into how many splits the columns of a row are divided at most.
MAX_SPLITS = 32


@triton.jit
def _attend_split(query, keys, values, slots, ends, parts, largest, sums, scale, window,
                  query_row, query_head, cache_slot, cache_head, cache_column, num_kv_heads,
                  SPLITS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr,
                  BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    end = tl.load(ends + row).to(tl.int32)
    first = tl.maximum(0, end - window)
    share = tl.cdiv(tl.cdiv(end - first, SPLITS), BLOCK_N) * BLOCK_N
    begin = first + split * share
    stop = tl.minimum(end, begin + share)
    dims, members, near = tl.arange(0, BLOCK_D), tl.arange(0, ROWS), tl.arange(0, BLOCK_N)
    in_dim, in_group = dims < DIM, members < GROUP
    asked = query + row.to(tl.int64) * query_row + (head * GROUP + members[:, None]) * query_head + dims[None, :]
    q = tl.load(asked, mask=in_group[:, None] & in_dim[None, :], other=0.0)
    slot = tl.load(slots + row).to(tl.int64)
    base = slot * cache_slot + head.to(tl.int64) * cache_head
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sum_values = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for at in range(begin, stop, BLOCK_N):
        columns = at + near
        is_seen = columns < stop
        place = base + columns[:, None].to(tl.int64) * cache_column + dims[None, :]
        k = tl.load(keys + place, mask=is_seen[:, None] & in_dim[None, :], other=0.0)
        v = tl.load(values + place, mask=is_seen[:, None] & in_dim[None, :], other=0.0)
        scores = tl.where(is_seen[None, :], tl.dot(q, tl.trans(k)) * scale, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - new_top[:, None])
        shrink = tl.exp(top - new_top)
        total = total * shrink + tl.sum(weights, 1)
        sum_values = sum_values * shrink[:, None] + tl.dot(weights.to(v.dtype), v)
        top = new_top
    place = ((row * num_kv_heads + head) * GROUP + members) * SPLITS + split
    tl.store(largest + place, top, mask=in_group)
    tl.store(sums + place, total, mask=in_group)
    tl.store(parts + place[:, None] * DIM + dims[None, :], sum_values, mask=in_group[:, None] & in_dim[None, :])


@triton.jit
def _combine_splits(parts, largest, sums, out, SPLITS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    head = tl.program_id(0).to(tl.int64)
    splits, dims = tl.arange(0, SPLITS), tl.arange(0, BLOCK_D)
    in_dim = dims < DIM
    tops = tl.load(largest + head * SPLITS + splits)
    top = tl.max(tops, 0)
    weights = tl.where(tops == float("-inf"), 0.0, tl.exp(tops - top))
    total = tl.sum(weights * tl.load(sums + head * SPLITS + splits), 0)
    part = tl.load(parts + (head * SPLITS + splits)[:, None] * DIM + dims[None, :], mask=in_dim[None, :], other=0.0)
    whole = tl.sum(part * weights[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(out + head * DIM + dims, whole.to(out.dtype.element_ty), mask=in_dim)


def num_splits(num_rows: int, num_kv_heads: int, context_tokens: int) -> int:
    """Into how many splits a row's columns are divided, so that all multiprocessors have work: a power of two."""
    wanted = max(1, 264 // (num_rows * num_kv_heads))
    return min(
        MAX_SPLITS, triton.next_power_of_2(wanted), triton.next_power_of_2(triton.cdiv(context_tokens, ATTEND_KEYS))
    )


def attend_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    ends: torch.Tensor,
    scale: float,
    window: int,
) -> torch.Tensor:
    """Attention of one new token a row over its slot's first `ends` [rows] columns.

    query [rows, heads, 1, dim] -> [rows, 1, heads, dim]. keys, values: a layer's cache [slots, kv heads, columns, dim].
    window: how many columns a token sees at most. Several programs split a row's columns (arXiv 2311.01282).
    """
    rows, num_heads, _, dim = query.shape
    num_kv_heads = keys.shape[1]
    splits, group = num_splits(rows, num_kv_heads, keys.shape[2]), num_heads // num_kv_heads
    parts = torch.empty((rows, num_heads, splits, dim), dtype=torch.float32, device=query.device)
    largest, sums = torch.empty((2, rows, num_heads, splits), dtype=torch.float32, device=query.device)
    out = torch.empty((rows, 1, num_heads, dim), dtype=query.dtype, device=query.device)
    block_d = max(16, triton.next_power_of_2(dim))
    _attend_split[(rows, num_kv_heads, splits)](
        query, keys, values, slots, ends, parts, largest, sums, scale, window, query.stride(0), query.stride(1),
        *keys.stride()[:3], num_kv_heads, SPLITS=splits, GROUP=group, ROWS=max(16, triton.next_power_of_2(group)),
        DIM=dim, BLOCK_D=block_d, BLOCK_N=ATTEND_KEYS, num_warps=4)  # fmt: skip
    _combine_splits[(rows * num_heads,)](
        parts, largest, sums, out, SPLITS=splits, DIM=dim, BLOCK_D=block_d, num_warps=2
    )
    return out


@triton.jit
def _attend_prefill(query, keys, values, slots, begins, out, scale, window, num_tokens,
                    query_head, query_token, cache_slot, cache_head, cache_column, num_heads, num_columns,
                    GROUP: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
                    BLOCK_N: tl.constexpr):  # fmt: skip
    block, head = tl.program_id(0), tl.program_id(1)
    begin, slot = tl.load(begins).to(tl.int32), tl.load(slots).to(tl.int64)
    tokens, dims, near = block * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    is_asked = (tokens < num_tokens)[:, None] & (dims < DIM)[None, :]
    q = tl.load(query + head * query_head + tokens[:, None].to(tl.int64) * query_token + dims[None, :], mask=is_asked,
                other=0.0)  # fmt: skip
    base = slot * cache_slot + (head // GROUP).to(tl.int64) * cache_head
    places = begin + tokens
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sum_values = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    first = tl.maximum(0, begin + block * BLOCK_M - window + 1) // BLOCK_N * BLOCK_N
    stop = tl.minimum(begin + tl.minimum(num_tokens, (block + 1) * BLOCK_M), num_columns)
    for at in range(first, stop, BLOCK_N):
        columns = at + near
        there = (columns < stop)[:, None] & (dims < DIM)[None, :]
        place = base + columns[:, None].to(tl.int64) * cache_column + dims[None, :]
        k = tl.load(keys + place, mask=there, other=0.0)
        v = tl.load(values + place, mask=there, other=0.0)
        back = places[:, None] - columns[None, :]
        scores = tl.where((back >= 0) & (back < window), tl.dot(q, tl.trans(k)) * scale, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        safe_top = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp(scores - safe_top[:, None])
        shrink = tl.exp(top - safe_top)
        total = total * shrink + tl.sum(weights, 1)
        sum_values = sum_values * shrink[:, None] + tl.dot(weights.to(v.dtype), v)
        top = new_top
    result = sum_values / tl.where(total > 0, total, 1.0)[:, None]
    to = out + (tokens[:, None].to(tl.int64) * num_heads + head) * DIM + dims[None, :]
    tl.store(to, result.to(out.dtype.element_ty), mask=is_asked)


def attend_prefill(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    begins: torch.Tensor,
    scale: float,
    window: int,
) -> torch.Tensor:
    """Causal attention of one chat's new tokens, the first at column `begins` [1], over its slot.

    query [1, heads, tokens, dim] -> [1, tokens, heads, dim]; the rest as for `attend_decode`.
    """
    _, num_heads, num_tokens, dim = query.shape
    out = torch.empty((1, num_tokens, num_heads, dim), dtype=query.dtype, device=query.device)
    block_d = max(16, triton.next_power_of_2(dim))
    _attend_prefill[(triton.cdiv(num_tokens, PREFILL_QUERIES), num_heads)](
        query, keys, values, slots, begins, out, scale, window, num_tokens, query.stride(1), query.stride(2),
        *keys.stride()[:3], num_heads, keys.shape[2], GROUP=num_heads // keys.shape[1], DIM=dim, BLOCK_D=block_d,
        BLOCK_M=PREFILL_QUERIES, BLOCK_N=ATTEND_KEYS, num_warps=4, num_stages=3)  # fmt: skip
    return out
