"""Attention over the slots' KV cache, as a function that transformers' model classes call.

transformers' own attention repeats shared heads for every query and makes a mask for a whole chunk; both take memory
that grows with the context. Here a token's queries that share a KV head become rows of one product, and a chunk uses
causal kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from core.memory.layer_state import MAX_TORCH_HEAD_DIM, WRITTEN_OUT_QUERIES
from core.worker.kernels.cpu_int4_prefill import multiplies_bfloat16

NAME = "llamadeck"
# What some families add to attention that captured steps do not have: a bound on scores, a bias for each pair of places
# or for distance.
ADDITIONS = ("softcap", "position_bias", "slopes")


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
    **extras: Any,
) -> tuple[torch.Tensor, None]:
    """query [rows, heads, new tokens, head dim] over key, value [rows, kv heads, length, head dim]
    -> [rows, new tokens, heads, head dim].

    mask: bool [rows, 1, new tokens, length]; None: causal, the new tokens being the last ones. softcap: the bound that
    scores approach (arXiv 2408.00118). s_aux [heads]: sinks, scores that belong to no token (arXiv 2309.17453). slopes
    [heads]: what a score loses for each token of distance (ALiBi, arXiv
    2108.12409), which needs the new tokens' `positions` [rows, new tokens]. Raises NotImplementedError for what else a
    model adds to plain attention.
    """
    refuse_additions(extras)
    if key.device != query.device:
        # Those of an earlier layer, which lies on another GPU.
        key, value = key.to(query.device), value.to(query.device)
    is_too_wide = not query.is_cpu and query.shape[3] > MAX_TORCH_HEAD_DIM
    if softcap is not None or s_aux is not None or is_too_wide:
        return attend_written_out(query, key, value, mask, scaling, softcap, s_aux), None
    if slopes is not None and positions is not None:
        bias = distance_bias(slopes.to(query.device), positions, key.shape[2], query.dtype)
        return scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling).transpose(1, 2), None
    num_rows, num_heads, num_tokens, _ = query.shape
    if num_tokens == 1:
        return attend_by_key(query, key, value, scaling, mask).view(num_rows, 1, num_heads, -1), None
    bias = causal_lower_right(num_tokens, key.shape[2]) if mask is None else mask
    if key.shape[1] != num_heads and not query.is_cpu and (mask is not None or not has_flash(query)):
        # Torch would multiply all scores out: what of its kernels takes shared heads takes no mask and no older GPU.
        key, value = (one.repeat_interleave(num_heads // key.shape[1], dim=1) for one in (key, value))
    shares_heads = key.shape[1] != num_heads
    output = scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling, enable_gqa=shares_heads)
    return output.transpose(1, 2).contiguous(), None


def attend_by_key(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """query [rows, heads, 1, head dim] over key, value [rows, kv heads, length, head dim] -> [rows, heads * head dim].
    mask: bool [rows, 1, 1, length].

    Keys and values are read once for all queries that share them. On a CPU without products of bfloat16, 14 queries
    over 2 keys of 1000 tokens take 0.2 ms so, and 2.5 one by one.
    """
    packed = pack_by_key(query, key.shape[1])
    output = scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scale)
    return unpack_by_key(output, query.shape[1])


def pack_by_key(query: torch.Tensor, num_kv_heads: int) -> torch.Tensor:
    """query [rows, heads, 1, head dim] -> [rows, kv heads, those that share one and perhaps one more, head dim]."""
    num_rows, num_heads, _, head_dim = query.shape
    packed = query.reshape(num_rows, num_kv_heads, -1, head_dim)
    if packed.shape[2] % 2 and query.is_cpu and query.dtype == torch.bfloat16 and not multiplies_bfloat16():
        # Torch's product for two rows takes half the time of its product for one, and that for four less than that for
        # three.
        packed = torch.cat((packed, packed[:, :, :1]), 2)
    return packed


def unpack_by_key(output: torch.Tensor, num_heads: int) -> torch.Tensor:
    """What attention gives for packed queries, [rows, kv heads, more or less those that share one, head dim]
    -> [rows, heads * head dim]."""
    num_rows, num_kv_heads = output.shape[:2]
    return output[:, :, : num_heads // num_kv_heads].reshape(num_rows, -1)


def has_flash(query: torch.Tensor) -> bool:
    """Whether torch's FlashAttention runs on the GPU of `query`."""
    return bool(torch.cuda.get_device_capability(query.device) >= (8, 0))


def attend_written_out(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """`attend` with scores of softcap * tanh(score / softcap), or with sinks: some queries at a time, as the plan
    counts them."""
    num_rows, num_heads, num_tokens, head_dim = query.shape
    num_kv_heads, length = key.shape[1], key.shape[2]
    scale = head_dim**-0.5 if scaling is None else scaling
    if mask is None:
        ends = torch.arange(length - num_tokens, length, device=query.device)
        mask = (torch.arange(length, device=query.device) <= ends[:, None])[None, None]
    outputs = []
    for begin in range(0, num_tokens, WRITTEN_OUT_QUERIES):
        some = query[:, :, begin : begin + WRITTEN_OUT_QUERIES]
        by_key = some.reshape(num_rows, num_kv_heads, -1, head_dim)
        scores = torch.matmul(by_key, key.transpose(2, 3)).float()
        scores = scores.mul_(scale) if softcap is None else scores.mul_(scale / softcap).tanh_().mul_(softcap)
        scores = scores.view(num_rows, num_heads, some.shape[2], length)
        scores.masked_fill_(~mask[:, :, begin : begin + WRITTEN_OUT_QUERIES], -torch.inf)
        weights = softmax_with_sinks(scores, sinks).to(value.dtype).view(num_rows, num_kv_heads, -1, length)
        outputs.append(torch.matmul(weights, value).view(num_rows, num_heads, some.shape[2], -1))
    return torch.cat(outputs, 2).transpose(1, 2).contiguous()


def softmax_with_sinks(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """The softmax of scores [rows, heads, queries, columns], of which each head's sink [heads] takes a share."""
    if sinks is None:
        return scores.softmax(-1)
    own = sinks.float()[:, None, None]
    top = scores.amax(-1, keepdim=True).maximum(own)
    weights = scores.sub_(top).exp_()
    return weights.div_(weights.sum(-1, keepdim=True) + (own - top).exp())


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
