"""A decoder layer in a few kernels, for one new token a row and for a chunk of a prompt; and the model's head.

core/worker/decode/layer_fusion.py puts these modules in place of a model's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from core.worker.decode.fused_modules import FusedNorm
from core.worker.decode.graph_cache import AttentionSpec, GraphCache
from core.worker.kernels.cache_attention import attend_prefill
from core.worker.kernels.decode_attention import DecodeKernels
from core.worker.kernels.packed_prefill import FusedDequantGemm
from core.worker.kernels.packed_small_batch import MAX_SMALL_BATCH, FusedRmsNorm, PackedLinear
from core.worker.kernels.packed_variants import MAX_NORMED


@dataclass(frozen=True, slots=True)
class LayerMatrices:
    """The norms and matrices of a decoder layer. qkv: one merged matrix, or query, key and value. gate_up: merged."""

    input_norm: FusedNorm
    qkv: tuple[PackedLinear, ...]
    out: PackedLinear
    mlp_norm: FusedNorm
    gate_up: PackedLinear
    down: PackedLinear


class FusedDecoderLayer(nn.Module):
    """Stands in for `layer`: decodes rows of one token in a few kernels, and prefills chunks where `prefills` is set.
    Everything else goes through `layer`."""

    def __init__(
        self, layer: nn.Module, matrices: LayerMatrices, kernels: DecodeKernels, spec: AttentionSpec, index: int
    ) -> None:
        super().__init__()
        self.layer = layer
        self._matrices, self._kernels, self._spec, self._index = matrices, kernels, spec, index
        self.prefills = False

    def __getattr__(self, name: str) -> Any:
        """Models read attributes of their layers, such as the kind of their attention."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """[rows, tokens, hidden] -> the same shape."""
        cache = kwargs.get("past_key_values")
        rows, tokens = hidden_states.shape[:2]
        if isinstance(cache, GraphCache):
            if tokens == 1 and rows <= MAX_SMALL_BATCH:
                return self.decode(hidden_states[:, 0], kwargs["position_embeddings"], cache).unsqueeze(1)
            if self.prefills and rows == 1 and tokens >= FusedDequantGemm.min_rows:
                return self.prefill(hidden_states[0], kwargs["position_embeddings"], cache).unsqueeze(0)
        return self.layer(hidden_states, *args, **kwargs)

    def decode(
        self, hidden: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], cache: GraphCache
    ) -> torch.Tensor:
        """hidden [rows, size] of one new token a row -> the same shape."""
        matrices, spec = self._matrices, self._spec
        qkv = torch.empty(
            (hidden.shape[0], sum(one.out_features for one in matrices.qkv)), dtype=hidden.dtype, device=hidden.device
        )
        begin = 0
        for one in matrices.qkv:
            end = begin + one.out_features
            self._multiply_normed(one, hidden, matrices.input_norm, "none", out=qkv[:, begin:end])
            begin = end
        attended = self._kernels.attend(qkv, angles, cache.layer(self._index), cache.slots, cache.columns, spec.scale,
                                     spec.window, matrices.out.inverse_permutation)  # fmt: skip
        hidden = matrices.out.kernels.multiply(matrices.out.matrix, attended, "residual", matrices.out.bias, hidden)
        gated = self._multiply_normed(
            matrices.gate_up, hidden, matrices.mlp_norm, "swiglu", inverse_permutation=matrices.down.inverse_permutation
        )
        return matrices.down.kernels.multiply(matrices.down.matrix, gated, "residual", matrices.down.bias, hidden)

    def can_prefill(self) -> bool:
        """Whether its matrices multiply many rows from their codes, all in one way."""
        (first, *others), gemm = self._matrices.qkv, self._matrices.down.prefill_backend
        linears = (first, self._matrices.out, self._matrices.gate_up)
        return not others and isinstance(gemm, FusedDequantGemm) and all(one.prefill_backend is gemm for one in linears)

    def prefill(
        self, hidden: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], cache: GraphCache
    ) -> torch.Tensor:
        """hidden [tokens, size] of one chat's chunk -> the same shape."""
        matrices, gemm = self._matrices, self._matrices.down.prefill_backend
        assert isinstance(gemm, FusedDequantGemm)
        hidden = self._prefill_attention(gemm, hidden, angles, cache)
        # A function of its own, so that its buffers are freed when it returns, as the memory plan counts them.
        gated = self._prefill_mlp(gemm, hidden)
        return gemm.multiply_swizzled(matrices.down.matrix, gated, hidden.shape[0], matrices.down.bias, hidden)

    def _prefill_attention(
        self,
        gemm: FusedDequantGemm,
        hidden: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        cache: GraphCache,
    ) -> torch.Tensor:
        matrices, spec, (keys, values) = self._matrices, self._spec, cache.layer(self._index)
        qkv = self._prefill_normed(gemm, matrices.qkv[0], hidden, matrices.input_norm)
        query = self._kernels.apply_rope_and_store_kv(qkv, angles, (keys, values), cache.slots, cache.columns)
        attended = attend_prefill(query, keys, values, cache.slots, cache.bounds, spec.scale, spec.window)
        swizzled = gemm.permute_rows(matrices.out.matrix, attended.view(hidden.shape[0], -1))
        return gemm.multiply_swizzled(matrices.out.matrix, swizzled, hidden.shape[0], matrices.out.bias, hidden)

    def _prefill_mlp(self, gemm: FusedDequantGemm, hidden: torch.Tensor) -> torch.Tensor:
        both = self._prefill_normed(gemm, self._matrices.gate_up, hidden, self._matrices.mlp_norm)
        return gemm.swiglu_rows(self._matrices.down.matrix, both, self._matrices.down.inverse_permutation)

    def _prefill_normed(
        self, gemm: FusedDequantGemm, linear: PackedLinear, hidden: torch.Tensor, norm: FusedNorm
    ) -> torch.Tensor:
        swizzled = gemm.rmsnorm_rows(
            linear.matrix, hidden, FusedRmsNorm(norm.weight, linear.inverse_permutation, norm.eps)
        )
        return gemm.multiply_swizzled(linear.matrix, swizzled, hidden.shape[0], linear.bias)

    def _multiply_normed(
        self, linear: PackedLinear, hidden: torch.Tensor, norm: FusedNorm, epilogue: str, **more: torch.Tensor | None
    ) -> torch.Tensor:
        """A product of the RMS-normed rows [rows, size]; one row takes one kernel."""
        matrix, multiply = linear.matrix, linear.kernels.multiply
        if hidden.shape[0] == 1 and matrix.inputs <= MAX_NORMED:
            before = FusedRmsNorm(norm.weight, linear.inverse_permutation, norm.eps)
            return multiply(matrix, hidden, epilogue, linear.bias, norm=before, **more)
        normed, sums = self._kernels.norm(
            hidden, norm.weight, norm.eps, linear.kernels.inputs_per_group, linear.inverse_permutation
        )
        return multiply(matrix, normed, epilogue, linear.bias, sums=sums, **more)


class FusedHead(nn.Module):
    """The model's head. Up to MAX_SMALL_BATCH rows, a row's logits are the same whatever rows are beside it."""

    def __init__(self, head: nn.Linear, like: PackedLinear) -> None:
        super().__init__()
        self.weight = head.weight
        self._kernels = like.kernels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, tokens, hidden] -> [rows, tokens, vocabulary]."""
        rows = x.reshape(-1, x.shape[-1])
        if rows.shape[0] > MAX_SMALL_BATCH:
            return nn.functional.linear(x, self.weight)
        return self._kernels.multiply_head(self.weight, rows).view(*x.shape[:-1], -1)
