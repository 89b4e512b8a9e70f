"""Attention over the slots' KV cache, as a function that transformers' model classes call.

transformers' own attention repeats shared heads for every query and makes a mask for a whole chunk; both take memory
that grows with the context. Here queries that share a KV head become rows of one product on a GPU, and a chunk uses
causal kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "llamadeck"
# Some families add attention sinks, capped scores, position biases or a bias for distance.
ADDITIONS = ("s_aux", "softcap", "position_bias", "slopes")


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None = None,
    slopes: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
    **extras: Any,
) -> tuple[torch.Tensor, None]:
    """query [rows, heads, new tokens, head dim] over key, value [rows, kv heads, length, head dim]
    -> [rows, new tokens, heads, head dim].

    mask: bool [rows, 1, new tokens, length]; None: causal, the new tokens being the last ones. slopes [heads]: what a
    score loses for each token of distance (ALiBi, arXiv 2108.12409), which needs the new tokens' `positions` [rows, new
    tokens]. Raises NotImplementedError for what a model adds to plain attention.
    """
    refuse_additions(extras)
    if slopes is not None and positions is not None:
        bias = distance_bias(slopes.to(query.device), positions, key.shape[2], query.dtype)
        return scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling).transpose(1, 2), None
    num_rows, num_heads, num_tokens, head_dim = query.shape
    if num_tokens == 1 and not query.is_cpu:
        packed = query.reshape(num_rows, key.shape[1], num_heads // key.shape[1], head_dim)
        output = scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scaling)
        return output.reshape(num_rows, 1, num_heads, -1), None
    # Without a mask one token sees all: on a CPU the same call as transformers' own, to the bit.
    bias = causal_lower_right(num_tokens, key.shape[2]) if mask is None and num_tokens > 1 else mask
    shares_heads = key.shape[1] != num_heads
    output = scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling, enable_gqa=shares_heads)
    return output.transpose(1, 2).contiguous(), None


def distance_bias(slopes: torch.Tensor, positions: torch.Tensor, length: int, dtype: torch.dtype) -> torch.Tensor:
    """[rows, heads, new tokens, length]: minus each head's slope times the distance; minus infinity for later tokens.

    Counted from the token itself, so that near ones are exact in half precision.
    """
    distance = torch.arange(length, device=positions.device) - positions[:, None, :, None].float()
    bias = torch.empty((len(positions), len(slopes), positions.shape[1], length), dtype=dtype, device=positions.device)
    torch.mul(distance.masked_fill_(distance > 0, -torch.inf), slopes.float()[:, None, None], out=bias)
    return bias


def refuse_additions(extras: Mapping[str, Any]) -> None:
    """Raise NotImplementedError for what a model adds to plain attention."""
    added = [name for name in ADDITIONS if extras.get(name) is not None]
    if added:
        raise NotImplementedError(f"attention with {', '.join(added)}")


def register() -> str:
    """Register `attend` with transformers; the name to load a model with."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    return NAME
