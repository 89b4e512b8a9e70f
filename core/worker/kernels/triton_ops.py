"""The small operations of a captured step, each as one Triton kernel: norm, RoPE, SwiGLU, slots, KV cache.

Kernels read from GPU memory what changes from step to step, so that a captured graph stays valid. Triton needs a GPU
and a C compiler.
"""

# mypy: disable-error-code="no-untyped-def, attr-defined, import-not-found, no-any-return"
# Triton reads a kernel's arguments by what they are called with; annotations other than its own confuse it.
from __future__ import annotations

import torch
import triton
import triton.language as tl


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
    """RMSNorm of x [..., size] with `weight` [size] (arXiv 1910.07467), -> the same shape."""
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
    """Cosines and sines for RoPE (arXiv 2104.09864), each [rows, tokens, head dim], the same in both halves of a head.

    positions [rows, tokens]; frequencies [head dim / 2]; scaling: the factor that YaRN and others multiply both by.
    """
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
    """both [..., 2 * size], gate then up -> silu(gate) * up, [..., size]."""
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
    """RoPE (arXiv 2104.09864) on query and key, in place; called in place of the model's `apply_rotary_pos_emb`.

    query, key [rows, heads, tokens, dim]; cos, sin [rows or 1, tokens, dim]. `unsqueeze_dim` must be 1: heads come
    before tokens.
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
    """Store new keys and values [rows, kv heads, tokens, dim] in a layer's cache [slots, kv heads, columns, dim].

    `slots` [rows] and `columns` [rows, tokens] say where. A column below 0 is not stored.
    """
    rows, num_heads, num_tokens, dim = key.shape
    _store_kv[(rows * num_tokens, num_heads)](
        key, value, keys, values, slots, columns, num_tokens, *key.stride()[:3], *value.stride()[:3],
        *keys.stride()[:3], DIM=dim, BLOCK=triton.next_power_of_2(dim), num_warps=1)  # fmt: skip
