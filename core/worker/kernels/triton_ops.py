"""The small operations of a decoding step, each as one Triton kernel; knows no model, no request and no graph.

Everything that changes from step to step (which slots, how far, how to draw) is read from GPU memory, so that a
captured graph stays right. Imported on a GPU only: Triton needs one, and a C compiler.
"""

# mypy: disable-error-code="no-untyped-def, attr-defined, import-not-found, no-any-return"
# Triton reads a kernel's arguments by what they are called with; annotations other than its own confuse it.
from __future__ import annotations

import torch
import triton
import triton.language as tl

from core.worker.kernels.sampling_kernel import BISECTIONS, LOGIT_RANGE, SlotSamplingState

ATTEND_KEYS = 64
READ_QUERIES = 64
MAX_SPLITS = 32
SAMPLE_BLOCK = 8192


@triton.jit
def _norm(x, weight, out, stride, size, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, BLOCK)
    inside = places < size
    values = tl.load(x + row * stride + places, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 0) / size + eps)
    normed = (values * scale).to(out.dtype.element_ty)
    tl.store(out + row * size + places, tl.load(weight + places, mask=inside, other=0.0) * normed, mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """[..., size] divided by its root mean square, times `weight` [size] (arXiv 1910.07467)."""
    rows = x.reshape(-1, x.shape[-1])
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(rows.shape[1])
    _norm[(rows.shape[0],)](rows, weight, out, rows.stride(0), rows.shape[1], eps, BLOCK=block,
                            num_warps=min(16, max(1, block // 256)))  # fmt: skip
    return out


@triton.jit
def _rope_angles(positions, frequencies, cos, sin, scaling, HALF: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, BLOCK)
    inside = places < HALF
    angles = tl.load(positions + row).to(tl.float32) * tl.load(frequencies + places, mask=inside, other=0.0)
    one, other = tl.cos(angles) * scaling, tl.sin(angles) * scaling
    for half in range(2):
        to = row * 2 * HALF + half * HALF + places
        tl.store(cos + to, one.to(cos.dtype.element_ty), mask=inside)
        tl.store(sin + to, other.to(sin.dtype.element_ty), mask=inside)


def rope_angles(
    positions: torch.Tensor, frequencies: torch.Tensor, scaling: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of `positions` [rows, tokens] times `frequencies` [half of a head], for both halves of a head
    (arXiv 2104.09864): [rows, tokens, head]."""
    half = frequencies.shape[0]
    cos, sin = torch.empty((2, *positions.shape, 2 * half), dtype=dtype, device=positions.device)
    _rope_angles[(positions.numel(),)](positions.contiguous(), frequencies, cos, sin, scaling, HALF=half,
                                  BLOCK=triton.next_power_of_2(half), num_warps=1)  # fmt: skip
    return cos, sin


@triton.jit
def _gather_slots(rows, tokens, positions, found, num_rows, padding_slot):
    row = tl.program_id(0)
    slot = tl.load(rows + row)
    position = tl.load(positions + slot)
    column = tl.where(slot < padding_slot, position, -1)
    tl.store(found + row, tl.load(tokens + slot))
    tl.store(found + num_rows + row, position)
    tl.store(found + 2 * num_rows + row, column)
    tl.store(found + 3 * num_rows + row, column + 1)


def gather_slots(
    rows: torch.Tensor, tokens: torch.Tensor, positions: torch.Tensor, padding_slot: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """For `rows` [rows] of slots: each one's last token, its position, the column to write (-1 for `padding_slot`), and
    the end of the columns that it sees. All int64 [rows]."""
    found = torch.empty((4, rows.shape[0]), dtype=torch.long, device=rows.device)
    _gather_slots[(rows.shape[0],)](rows, tokens, positions, found, rows.shape[0], padding_slot, num_warps=1)
    token, position, column, end = found
    return token, position, column, end


@triton.jit
def _swiglu(both, out, size, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    gate = tl.load(both + row * stride + places, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + row * stride + size + places, mask=inside, other=0.0)
    act = (gate * tl.sigmoid(gate)).to(out.dtype.element_ty)
    tl.store(out + row * size + places, act * up, mask=inside)


def swiglu(both: torch.Tensor) -> torch.Tensor:
    """[..., gate and up beside each other] -> silu(gate) * up, half as wide."""
    rows = both.reshape(-1, both.shape[-1])
    size, block = rows.shape[1] // 2, 1024
    out = torch.empty((*both.shape[:-1], size), dtype=both.dtype, device=both.device)
    _swiglu[(rows.shape[0], triton.cdiv(size, block))](rows, out, size, rows.stride(0), BLOCK=block)
    return out


@triton.jit
def _apply_rope(query, key, cos, sin, num_heads, num_tokens,
            query_row, query_head, query_token, key_row, key_head, key_token, angle_row, angle_token,
            HALF: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row, token, head = tl.program_id(0) // num_tokens, tl.program_id(0) % num_tokens, tl.program_id(1)
    if head < num_heads:
        at = query + row.to(tl.int64) * query_row + head * query_head + token.to(tl.int64) * query_token
    else:
        at = key + row.to(tl.int64) * key_row + (head - num_heads) * key_head + token.to(tl.int64) * key_token
    places = tl.arange(0, BLOCK)
    inside = places < HALF
    angle = row * angle_row + token * angle_token + places
    first = tl.load(at + places, mask=inside).to(tl.float32)
    second = tl.load(at + HALF + places, mask=inside).to(tl.float32)
    cos_first, sin_first = tl.load(cos + angle, mask=inside), tl.load(sin + angle, mask=inside)
    cos_second, sin_second = tl.load(cos + angle + HALF, mask=inside), tl.load(sin + angle + HALF, mask=inside)
    tl.store(at + places, (first * cos_first - second * sin_first).to(query.dtype.element_ty), mask=inside)
    tl.store(at + HALF + places, (second * cos_second + first * sin_second).to(query.dtype.element_ty), mask=inside)


def apply_rope(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary positions (arXiv 2104.09864), in place.

    query, key [rows, heads, tokens, dim]; cos, sin [rows, tokens, dim]. The angles may have
    one row for all rows. Only where heads come before tokens: `unsqueeze_dim` is 1.
    """
    rows, num_heads, num_tokens, dim = query.shape
    angle_row = cos.stride(0) if cos.shape[0] > 1 else 0
    _apply_rope[(rows * num_tokens, num_heads + key.shape[1])](
        query, key, cos, sin, num_heads, num_tokens, *query.stride()[:3], *key.stride()[:3], angle_row, cos.stride(1),
        HALF=dim // 2, BLOCK=triton.next_power_of_2(dim // 2), num_warps=1)  # fmt: skip
    return query, key


@triton.jit
def _store_kv(key, value, keys, values, slots, columns, num_tokens,
          key_row, key_head, key_token, value_row, value_head, value_token, cache_slot, cache_head, cache_column,
          DIM: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row, token, head = tl.program_id(0) // num_tokens, tl.program_id(0) % num_tokens, tl.program_id(1)
    column = tl.load(columns + tl.program_id(0)).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    if column < 0:
        return
    places = tl.arange(0, BLOCK)
    inside = places < DIM
    to = slot * cache_slot + head * cache_head + column * cache_column + places
    from_key = row.to(tl.int64) * key_row + head * key_head + token.to(tl.int64) * key_token + places
    from_value = row.to(tl.int64) * value_row + head * value_head + token.to(tl.int64) * value_token + places
    tl.store(keys + to, tl.load(key + from_key, mask=inside), mask=inside)
    tl.store(values + to, tl.load(value + from_value, mask=inside), mask=inside)


def store_kv(
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    columns: torch.Tensor,
) -> None:
    """Write new keys and values [rows, kv heads, tokens, dim] into a layer's cache [slots, kv heads, columns, dim].

    `slots` [rows] says whose, `columns` [rows, tokens] where; a column below 0 is written nowhere.
    """
    rows, num_heads, num_tokens, dim = key.shape
    _store_kv[(rows * num_tokens, num_heads)](
        key, value, keys, values, slots, columns, num_tokens, *key.stride()[:3], *value.stride()[:3],
        *keys.stride()[:3], DIM=dim, BLOCK=triton.next_power_of_2(dim), num_warps=1)  # fmt: skip


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
    """Into how many parts one row's keys are split, so that all multiprocessors have work: a power of two."""
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
    """One new token of each row over its own slot's first `ends` columns.

    query [rows, heads, 1, dim] -> [rows, 1, heads, dim]. keys, values are a layer's cache [slots,
    kv heads, columns, dim]; `window` is how far back a token looks.
    The keys are read in parts that several multiprocessors share (arXiv 2311.01282).
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
    """New tokens of one row, the first at column `begins` [1], over their slot.

    query [1, heads, tokens, dim] -> [1, tokens, heads, dim].
    """
    _, num_heads, num_tokens, dim = query.shape
    out = torch.empty((1, num_tokens, num_heads, dim), dtype=query.dtype, device=query.device)
    block_d = max(16, triton.next_power_of_2(dim))
    _attend_prefill[(triton.cdiv(num_tokens, READ_QUERIES), num_heads)](
        query, keys, values, slots, begins, out, scale, window, num_tokens, query.stride(1), query.stride(2),
        *keys.stride()[:3], num_heads, keys.shape[2], GROUP=num_heads // keys.shape[1], DIM=dim, BLOCK_D=block_d,
        BLOCK_M=READ_QUERIES, BLOCK_N=ATTEND_KEYS, num_warps=4, num_stages=3)  # fmt: skip
    return out


@triton.jit
def _count(scores, size, border, BLOCK: tl.constexpr):
    """How many scores are at least `border`."""
    found = tl.zeros([BLOCK], tl.int32)
    for at in range(0, size, BLOCK):
        places = at + tl.arange(0, BLOCK)
        found += (tl.load(scores + places, mask=places < size, other=float("-inf")) >= border).to(tl.int32)
    return tl.sum(found, 0)


@triton.jit
def _mass(scores, size, border, top, BLOCK: tl.constexpr):
    """The sum of e^(score - top) over scores that are at least `border`."""
    found = tl.zeros([BLOCK], tl.float32)
    for at in range(0, size, BLOCK):
        places = at + tl.arange(0, BLOCK)
        score = tl.load(scores + places, mask=places < size, other=float("-inf"))
        found += tl.where(score >= border, tl.exp(score - top), 0.0)
    return tl.sum(found, 0)


@triton.jit
def _sample(logits, scratch, rows, settings, seeds, seen, tokens, positions, step, drawn, size, num_slots,
          STEPS: tl.constexpr, RANGE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(rows + row).to(tl.int64)
    temperature, top_p = tl.load(settings + slot * 5), tl.load(settings + slot * 5 + 1)
    top_k, min_p = tl.load(settings + slot * 5 + 2), tl.load(settings + slot * 5 + 3)
    penalty = tl.load(settings + slot * 5 + 4)
    position = tl.load(positions + slot) + tl.load(step)
    is_greedy = temperature < 1e-5
    divisor = tl.where(is_greedy, 1.0, temperature)
    scores = scratch + row * size
    tops, broken = tl.full([BLOCK], float("-inf"), tl.float32), tl.zeros([BLOCK], tl.int32)
    for at in range(0, size, BLOCK):
        places = at + tl.arange(0, BLOCK)
        score = tl.load(logits + row * size + places, mask=places < size, other=float("-inf")).to(tl.float32)
        is_seen = tl.load(seen + slot * size + places, mask=places < size, other=0) > 0
        score = tl.where(is_seen, tl.where(score > 0, score / penalty, score * penalty), score) / divisor
        broken = broken | (score != score).to(tl.int32)
        tops = tl.maximum(tops, score)
        tl.store(scores + places, score, mask=places < size)
    tl.debug_barrier()
    top, is_broken = tl.max(tops, 0), tl.max(broken, 0) > 0
    border = float("-inf")
    if is_greedy:
        border = top
    else:
        if (top_k > 0) & (top_k < size):
            low, high = top - 4 * RANGE, top
            for _ in range(STEPS):
                middle = (low + high) / 2
                enough = _count(scores, size, middle, BLOCK) >= top_k
                low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
            border = low
        if top_p < 1:
            wanted = top_p * _mass(scores, size, border, top, BLOCK)
            low, high = tl.maximum(border, top - RANGE), top
            for _ in range(STEPS):
                middle = (low + high) / 2
                enough = _mass(scores, size, middle, top, BLOCK) >= wanted
                low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
            border = low
        if min_p > 0:
            border = tl.minimum(tl.maximum(border, top + tl.log(min_p)), top)
    key = tl.load(seeds + slot) + position.to(tl.int64) * 0x1E3779B97F4A7C15
    bests, spots = tl.full([BLOCK], float("-inf"), tl.float32), tl.zeros([BLOCK], tl.int32)
    for at in range(0, size, BLOCK):
        places = at + tl.arange(0, BLOCK)
        score = tl.load(scores + places, mask=places < size, other=float("-inf"))
        score = tl.where(score >= border, score, float("-inf"))
        if not is_greedy:
            score += -tl.log(-tl.log(tl.maximum(tl.rand(key, places), 1e-10)))
        spots = tl.where(score > bests, places, spots)
        bests = tl.maximum(bests, score)
    # Of equals the first.
    token = tl.min(tl.where(bests == tl.max(bests, 0), spots, size - 1), 0)
    if slot < num_slots:
        tl.store(seen + slot * size + token, 1)
        tl.store(tokens + slot, token.to(tl.int64))
        tl.store(positions + slot, position)
    tl.store(drawn + row, tl.where(is_broken, -1, token).to(tl.int64))


def sample_all(
    logits: torch.Tensor,
    scratch: torch.Tensor,
    rows: torch.Tensor,
    slots: SlotSamplingState,
    step: torch.Tensor,
    drawn: torch.Tensor,
) -> None:
    """Draw the next token of every row, as core/worker/decode/sampling.py does, and note it as its slot's.

    logits [rows, vocabulary], scratch the same in float32, rows [rows] which of the slots. Their positions grow by
    `step` [1]. drawn [rows] gets the tokens, -1 where the logits hold no numbers. Chance is Philox by seed and
    position: the same whatever else is in the batch.
    """
    size = logits.shape[1]
    block = min(SAMPLE_BLOCK, triton.next_power_of_2(size))
    _sample[(logits.shape[0],)](
        logits, scratch, rows, *slots, step, drawn, size, slots.seeds.shape[0] - 1,
        STEPS=BISECTIONS, RANGE=LOGIT_RANGE, BLOCK=block, num_warps=16)  # fmt: skip
