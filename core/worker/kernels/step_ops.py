"""The small operations of a captured step, each as one kernel of cuda/steps.cu: norm, RoPE, SwiGLU, slots, KV cache.

Kernels read from GPU memory what changes from step to step, so that a captured graph stays valid. They take float16 and
bfloat16 on any GPU; a row's result does not depend on the other rows.
"""

from __future__ import annotations

from functools import cache

import torch

from core.worker.kernels.kv_pages import KvPages, page_defines
from core.worker.kernels.nvrtc import Argument, CudaKernel, CudaModule, read_source

# Threads of a block, as cuda/steps.cu has them; a thread takes PART values.
THREADS, SLOT_THREADS, PART = 256, 64, 8
# Rows up to SHORT_ROW values are normed by a warp each, a block's SHORT_ROWS at once; longer ones by LONG_THREADS.
SHORT_ROW, SHORT_ROWS, LONG_THREADS = 1024, 4, 512
HALVES = (torch.float16, torch.bfloat16)


@cache
def module_for(dtype: torch.dtype, device: torch.device, bits: int = 16) -> CudaModule:
    """bits: of what `store_heads` stores."""
    defines = {"BF16": int(dtype == torch.bfloat16), **page_defines(bits)}
    return CudaModule(read_source("pages.cuh", "steps.cu"), defines, device)


@cache
def kernel_for(name: str, dtype: torch.dtype, device: torch.device, bits: int = 16) -> CudaKernel:
    """Raises TypeError for other types than those of HALVES, CudaCodeError where the kernels do not compile."""
    if dtype not in HALVES:
        raise TypeError(f"{name}: {dtype}")
    return module_for(dtype, device, bits).kernel(name)


def _launch(name: str, like: torch.Tensor, num_threads: int, *arguments: Argument) -> None:
    """Run a kernel that computes an element, or PART of them, a thread."""
    kernel_for(name, like.dtype, like.device)((-(-num_threads // THREADS), 1, 1), THREADS, *arguments)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    """RMSNorm of x [..., size] with `weight` [size] (arXiv 1910.07467), -> the same shape.

    offset: what is added to each weight, 1 in models that keep them less one (Gemma, Qwen3-Next).
    """
    if weight.dtype != x.dtype:
        raise TypeError(f"a norm's weight in {weight.dtype}, rows in {x.dtype}")
    rows = x.reshape(-1, x.shape[-1])
    num_rows, size = rows.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    name, num_blocks, threads = "norm_long_rows", num_rows, LONG_THREADS
    if size <= SHORT_ROW:
        name, num_blocks, threads = "norm_short_rows", -(-num_rows // SHORT_ROWS), SHORT_ROWS * 32
    kernel_for(name, x.dtype, x.device)((num_blocks, 1, 1), threads, rows, weight, out, rows.stride(0), num_rows, size,
                                        float(eps), float(offset))  # fmt: skip
    return out


def rope_angles(
    positions: torch.Tensor, frequencies: torch.Tensor, scaling: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines for RoPE (arXiv 2104.09864), each [rows, tokens, head dim], the same in both halves of a head.

    positions [rows, tokens]; frequencies [head dim / 2], float32; scaling: the factor that YaRN and others multiply
    both by.
    """
    half, num_rows = frequencies.shape[0], positions.numel()
    cos, sin = torch.empty((2, *positions.shape, 2 * half), dtype=dtype, device=positions.device)
    _launch("rope_angles", cos, num_rows * half, positions.contiguous(), frequencies, cos, sin, float(scaling),
            num_rows, half)  # fmt: skip
    return cos, sin


def gather_slots(
    rows: torch.Tensor, tokens: torch.Tensor, positions: torch.Tensor, padding_slot: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """For `rows` [rows] of slots: each one's last token, its position, the column to write (-1 for `padding_slot`), and
    the end of the columns that it sees. All int64 [rows]."""
    num_rows = rows.shape[0]
    found = torch.empty((4, num_rows), dtype=torch.long, device=rows.device)
    # Its integers are the same in the module of either type.
    kernel_for("gather_slots", torch.float16, rows.device)(
        (-(-num_rows // SLOT_THREADS), 1, 1), SLOT_THREADS, rows, tokens, positions, found, num_rows, padding_slot
    )
    token, position, column, end = found
    return token, position, column, end


def place_chunks(
    chunks: torch.Tensor, num_rows: int, padding_slot: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where the rows of a pass of `num_rows` belong that reads the `chunks` [chunks, 4] of prompts: slot, first column,
    tokens, first row. Each row's slot, position, and column to write. All int64 [rows].

    Rows of no chunk are `padding_slot`'s, at position 0, and write to column -1, which is none.
    """
    rows = torch.empty((3, num_rows), dtype=torch.long, device=chunks.device)
    # Its integers are the same in the module of either type.
    kernel_for("place_chunks", torch.float16, chunks.device)(
        (-(-num_rows // SLOT_THREADS), 1, 1), SLOT_THREADS, chunks, rows, num_rows, chunks.shape[0], padding_slot
    )
    slots, positions, columns = rows
    return slots, positions, columns


def swiglu(both: torch.Tensor) -> torch.Tensor:
    """both [..., 2 * size], gate then up -> silu(gate) * up, [..., size]."""
    rows = both.reshape(-1, both.shape[-1])
    num_rows, size = rows.shape[0], rows.shape[1] // 2
    out = torch.empty((*both.shape[:-1], size), dtype=both.dtype, device=both.device)
    _launch("gate_rows", both, num_rows * -(-size // PART), rows, out, rows.stride(0), num_rows, size)
    return out


def apply_rope(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """RoPE (arXiv 2104.09864) on query and key, in place; called in place of the model's `apply_rotary_pos_emb`.

    query, key [rows, heads, tokens, dim]; cos, sin [rows or 1, tokens, turned]: the first `turned` of `dim` are, the
    others stay. `unsqueeze_dim` must be 1: heads come before tokens.
    """
    # Some models keep their angles in float32.
    key, cos, sin = key.to(query.dtype), cos.to(query.dtype), sin.to(query.dtype)
    rows, num_heads, num_tokens, _ = query.shape
    num_kv_heads, half = key.shape[1], cos.shape[-1] // 2
    angle_row = cos.stride(0) if cos.shape[0] > 1 else 0
    threads = rows * num_tokens * (num_heads + num_kv_heads) * -(-half // PART)
    _launch("rotate_heads", query, threads, query, key, cos, sin, *query.stride()[:3], *key.stride()[:3], angle_row,
            cos.stride(1), rows, num_tokens, num_heads, num_kv_heads, half)  # fmt: skip
    return query, key


def store_kv(
    key: torch.Tensor, value: torch.Tensor, cache: KvPages, slots: torch.Tensor, columns: torch.Tensor
) -> None:
    """Store new keys and values [rows, kv heads, tokens, dim] in a layer's pages.

    `slots` [rows] and `columns` [rows, tokens] say where. A column below 0 is not stored.
    """
    # Some models compute keys in float32.
    key, value = key.to(cache.dtype), value.to(cache.dtype)
    rows, num_heads, num_tokens, dim = key.shape
    # Of 8 bit a warp has a head.
    each = 32 if cache.bits == 8 else -(-dim // PART)
    kernel_for("store_heads", key.dtype, key.device, cache.bits)(
        (-(-rows * num_tokens * num_heads * each // THREADS), 1, 1), THREADS, key, value, cache.argument, slots,
        columns, *key.stride()[:3], *value.stride()[:3], rows, num_tokens, num_heads, dim,
    )  # fmt: skip
