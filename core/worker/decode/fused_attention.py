"""The attention of a decoder layer in a few kernels: norm, query, key and value, the attention itself, and its output
added to the residual."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from core.worker.decode.fused_modules import FusedNorm
from core.worker.decode.graph_cache import AttentionSpec, GraphCache
from core.worker.decode.layer_parts import LayerArguments, multiply_normed, prefill_normed, shared_gemm
from core.worker.kernels.cache_attention import attend_prefill
from core.worker.kernels.decode_attention import NO_NORM, DecodeKernels, HeadKind, HeadNorm
from core.worker.kernels.packed_prefill import FusedDequantGemm
from core.worker.kernels.packed_small_batch import PackedLinear
from core.worker.kernels.row_norm import MAX_ROW
from core.worker.model.merged_linear import MergedLinearSlice


@dataclass(frozen=True, slots=True)
class AttentionMatrices:
    """The norm and matrices of an attention. qkv: one merged matrix, or query, key and value."""

    norm: FusedNorm
    qkv: tuple[PackedLinear, ...]
    out: PackedLinear


def find_attention_matrices(layer: nn.Module) -> AttentionMatrices | None:
    """Those of a decoder layer with the usual modules, all of them PackedLinear; None for any other layer."""
    attention, norm = getattr(layer, "self_attn", None), getattr(layer, "input_layernorm", None)
    out, qkv = getattr(attention, "o_proj", None), matrices_of(attention)
    if not isinstance(norm, FusedNorm) or norm.weight.numel() > MAX_ROW or not isinstance(out, PackedLinear):
        return None
    return AttentionMatrices(norm, qkv, out) if qkv else None


def matrices_of(attention: nn.Module | None) -> tuple[PackedLinear, ...]:
    """The merged matrix of query, key and value, or the three; () for other modules, or where three permute inputs."""
    found = [getattr(attention, name, None) for name in ("q_proj", "k_proj", "v_proj")]
    merged = [one.merged for one in found if isinstance(one, MergedLinearSlice)]
    if len(merged) == 3 and all(one is merged[0] for one in merged):
        found = merged[:1]
    plain = tuple(one for one in found if isinstance(one, PackedLinear))
    takes_same_rows = len(plain) == 1 or all(one.inverse_permutation is None for one in plain)
    return plain if len(plain) == len(found) and takes_same_rows else ()


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
    query_heads = sum(one.out_features for one in matrices.qkv) // spec.dim - 2 * num_kv_heads
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
        return len(matrices.qkv) == 1 and shared_gemm(matrices.out, *matrices.qkv) is not None

    def decode(self, hidden: torch.Tensor, arguments: LayerArguments) -> torch.Tensor:
        matrices, spec, cache = self._matrices, self._spec, _cache_of(arguments)
        qkv = torch.empty(
            (hidden.shape[0], sum(one.out_features for one in matrices.qkv)), dtype=hidden.dtype, device=hidden.device
        )
        begin = 0
        for one in matrices.qkv:
            end = begin + one.out_features
            multiply_normed(one, hidden, matrices.norm, "none", out=qkv[:, begin:end])
            begin = end
        attended = self._kernels.attend(
            qkv, arguments["position_embeddings"], cache.layer(self._index), cache.slots, cache.columns, spec.scale,
            spec.window, matrices.out.inverse_permutation, self._norm, spec.sinks,
        )  # fmt: skip
        return matrices.out.kernels.multiply(matrices.out.matrix, attended, "residual", matrices.out.bias, hidden)

    def prefill(self, hidden: torch.Tensor, arguments: LayerArguments) -> torch.Tensor:
        matrices, spec, cache = self._matrices, self._spec, _cache_of(arguments)
        gemm, (keys, values) = matrices.out.prefill_backend, cache.layer(self._index)
        assert isinstance(gemm, FusedDequantGemm)
        qkv = prefill_normed(gemm, matrices.qkv[0], hidden, matrices.norm)
        query = self._kernels.apply_rope_and_store_kv(
            qkv, arguments["position_embeddings"], (keys, values), cache.slots, cache.columns, self._norm
        )
        attended = attend_prefill(query, keys, values, cache.slots, cache.bounds, spec.scale, spec.window, spec.sinks)
        if self._kernels.kind.is_gated:
            self._kernels.gate(attended, qkv)
        swizzled = gemm.permute_rows(matrices.out.matrix, attended.view(hidden.shape[0], -1))
        return gemm.multiply_swizzled(matrices.out.matrix, swizzled, hidden.shape[0], matrices.out.bias, hidden)


def _cache_of(arguments: LayerArguments) -> GraphCache:
    cache = arguments["past_key_values"]
    assert isinstance(cache, GraphCache)
    return cache
