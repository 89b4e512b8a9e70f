"""The SwiGLU MLP of a decoder layer in two products: norm before, and SwiGLU and the residual sum after them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from core.worker.decode.fused_modules import FusedMlp, FusedNorm
from core.worker.decode.layer_parts import (
    LayerArguments,
    Packed,
    faster_gemm,
    find_normed,
    multiply_normed,
    multiply_packed,
    packed_of,
)
from core.worker.kernels.packed_prefill import gemm_of
from core.worker.kernels.packed_small_batch import PackedLinear
from core.worker.kernels.row_norm import MAX_ROW
from core.worker.model.adapters import AdapterLinear


@dataclass(frozen=True, slots=True)
class MlpMatrices:
    """The norm and matrices of an MLP. gate_up: merged."""

    norm: FusedNorm
    gate_up: Packed
    down: Packed


def find_mlp_matrices(layer: nn.Module) -> MlpMatrices | None:
    """Those of a decoder layer with the usual modules, all quantized for our kernels; None for any other layer."""
    mlp, norm = getattr(layer, "mlp", None), getattr(layer, "post_attention_layernorm", None)
    if not isinstance(mlp, FusedMlp) or not isinstance(norm, FusedNorm) or norm.weight.numel() > MAX_ROW:
        return None
    gate_up, down = find_normed(mlp.gate_up), mlp.down
    if gate_up is None or not isinstance(down, PackedLinear | AdapterLinear) or packed_of(down) is None:
        return None
    return MlpMatrices(norm, gate_up, down)


class FusedDenseMlp:
    """The MLP (a LayerPart) of a layer, where it is one for all tokens."""

    is_fused = True

    def __init__(self, matrices: MlpMatrices) -> None:
        self._matrices = matrices

    def can_prefill(self) -> bool:
        return gemm_of(self._matrices.down) is not None and gemm_of(self._matrices.gate_up) is not None

    def decode(self, hidden: torch.Tensor, arguments: LayerArguments) -> torch.Tensor:
        matrices, down = self._matrices, packed_of(self._matrices.down)
        assert down is not None
        if faster_gemm(matrices.gate_up, hidden) and faster_gemm(matrices.down, hidden):
            return self.prefill(hidden, arguments)
        gated = multiply_normed(
            matrices.gate_up, hidden, matrices.norm, "swiglu", inverse_permutation=down.inverse_permutation
        )
        return multiply_packed(matrices.down, gated, "residual", hidden)

    def prefill(self, hidden: torch.Tensor, arguments: LayerArguments) -> torch.Tensor:
        down = self._matrices.down
        # The two may be quantized in two ways, each with a product of its own: rows lie alike for both.
        gemm = gemm_of(down)
        assert isinstance(down, PackedLinear) and gemm is not None
        # A function of its own, so that its buffers are freed when it returns, as the memory plan counts them.
        gated = self._prefill_gated(hidden)
        return gemm.multiply_swizzled(down.matrix, gated, hidden.shape[0], down.bias, hidden)

    def _prefill_gated(self, hidden: torch.Tensor) -> torch.Tensor:
        gate_up, down, norm = self._matrices.gate_up, self._matrices.down, self._matrices.norm
        gemm = gemm_of(gate_up)
        assert isinstance(gate_up, PackedLinear) and isinstance(down, PackedLinear) and gemm is not None
        normed = gemm.rmsnorm_rows(gate_up.matrix, hidden, norm.before(gate_up.inverse_permutation))
        return gemm.multiply_gated(gate_up.matrix, normed, len(hidden), gate_up.bias, down.inverse_permutation)
