"""The attention of a decoder layer in a few kernels: norm, query, key and value, the attention itself, and its output
added to the residual."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from core.worker.decode.fused_modules import FusedNorm
from core.worker.decode.graph_cache import AttentionSpec, GraphCache
from core.worker.decode.layer_parts import LayerArguments
from core.worker.decode.mixer_matrices import (
    InputMatrices,
    can_multiply_out,
    can_prefill_out,
    find_input_matrices,
    layout_of,
    multiply_out,
    prefill_out,
)
from core.worker.kernels.decode_attention import NO_NORM, DecodeKernels, HeadKind, HeadNorm
from core.worker.kernels.row_layout import IN_ORDER, RowLayout
from core.worker.kernels.row_norm import MAX_ROW


@dataclass(frozen=True, slots=True)
class AttentionMatrices:
    """The norm and matrices of an attention. qkv: those of query, key and value, whose outputs lie in that order."""

    norm: FusedNorm
    qkv: InputMatrices
    out: nn.Module


def find_attention_matrices(layer: nn.Module) -> AttentionMatrices | None:
    """Those of a decoder layer with the usual modules, quantized or not; None for any other layer."""
    attention, norm = getattr(layer, "self_attn", None), getattr(layer, "input_layernorm", None)
    out = getattr(attention, "o_proj", None)
    if not isinstance(norm, FusedNorm) or norm.weight.numel() > MAX_ROW or not isinstance(attention, nn.Module):
        return None
    qkv = find_input_matrices(attention, ("q_proj", "k_proj", "v_proj"))
    if qkv is None or not qkv.are_in_order() or not can_multiply_out(out):
        return None
    return AttentionMatrices(norm, qkv, out)


def find_head_norm(attention: nn.Module, dim: int) -> HeadNorm | None:
    """The norms of each query and key by itself, of heads of `dim`; None for norms of another kind."""
    query, key = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    if query is None and key is None:
        return NO_NORM
    if not isinstance(query, FusedNorm) or not isinstance(key, FusedNorm):
        return None
    is_by_head = query.weight.numel() == key.weight.numel() == dim
    is_alike = (query.eps, query.offset) == (key.eps, key.offset)
    return HeadNorm(query.weight, key.weight, query.eps, query.offset) if is_by_head and is_alike else None


def find_head_kind(matrices: AttentionMatrices, spec: AttentionSpec, rotary: int, norm: HeadNorm) -> HeadKind | None:
    """What the heads are that `matrices` give, of which RoPE turns `rotary` elements; None for what no kernel takes."""
    num_heads, num_kv_heads = spec.heads
    query_heads = matrices.qkv.out_features // spec.dim - 2 * num_kv_heads
    if query_heads not in (num_heads, 2 * num_heads) or rotary % 16 or not 0 < rotary <= spec.dim:
        return None
    return HeadKind(spec.dim, rotary, norm.query is not None, query_heads > num_heads)


class FusedAttention:
    """The mixer (a LayerPart) of layer `index`, where it is such an attention."""

    is_fused = True

    def __init__(
        self,
        matrices: AttentionMatrices,
        kernels: DecodeKernels,
        spec: AttentionSpec,
        index: int,
        norm: HeadNorm = NO_NORM,
    ) -> None:
        self._matrices, self._kernels, self._spec, self._index = matrices, kernels, spec, index
        self._norm = norm

    def can_prefill(self) -> bool:
        matrices = self._matrices
        return matrices.qkv.can_prefill() and can_prefill_out(matrices.out, matrices.qkv)

    def decode(self, hidden: torch.Tensor, arguments: LayerArguments) -> torch.Tensor:
        matrices, cache = self._matrices, _cache_of(arguments)
        qkv = matrices.qkv.decode(hidden, matrices.norm)
        if cache.is_one_text:
            # A row sees the keys of those before it, which this stores; its own result is not used.
            self._attend(qkv, arguments, cache)
        layout = layout_of(matrices.out, hidden)
        attended = self._attend(qkv, arguments, cache, layout, starts_early=not cache.is_one_text)
        return multiply_out(matrices.out, attended, hidden)

    def _attend(
        self,
        qkv: torch.Tensor,
        arguments: LayerArguments,
        cache: GraphCache,
        layout: RowLayout = IN_ORDER,
        starts_early: bool = True,
    ) -> torch.Tensor:
        spec = self._spec
        return self._kernels.attend(
            qkv, arguments["position_embeddings"], cache.layer(self._index), cache.slots, cache.columns, spec.scale,
            spec.window, layout, self._norm, spec.sinks, starts_early,
        )  # fmt: skip

    def prefill(self, hidden: torch.Tensor, arguments: LayerArguments) -> torch.Tensor:
        matrices, spec, cache = self._matrices, self._spec, _cache_of(arguments)
        qkv = matrices.qkv.prefill(hidden, matrices.norm)
        query = self._kernels.apply_rope_and_store_kv(
            qkv, arguments["position_embeddings"], cache.layer(self._index), cache.slots, cache.columns, self._norm
        )
        attended = cache.attend_chunks(query, self._index, spec.scale, spec.window, spec.sinks)
        if self._kernels.kind.is_gated:
            self._kernels.gate(attended, qkv)
        return prefill_out(matrices.out, attended.view(hidden.shape[0], -1), hidden)


def _cache_of(arguments: LayerArguments) -> GraphCache:
    cache = arguments["past_key_values"]
    assert isinstance(cache, GraphCache)
    return cache
