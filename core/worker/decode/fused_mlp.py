"""The SwiGLU MLP of a decoder layer in two products: norm before, and SwiGLU and the residual sum after them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from core.worker.decode.fused_modules import FusedMlp, FusedNorm
from core.worker.decode.layer_parts import LayerArguments, multiply_normed, prefill_normed, shared_gemm
from core.worker.kernels.packed_prefill import FusedDequantGemm
from core.worker.kernels.packed_small_batch import PackedLinear
from core.worker.kernels.row_norm import MAX_ROW


@dataclass(frozen=True, slots=True)
class MlpMatrices:
    """The norm and matrices of an MLP. gate_up: merged."""

    norm: FusedNorm
    gate_up: PackedLinear
    down: PackedLinear


def find_mlp_matrices(layer: nn.Module) -> MlpMatrices | None:
    """Those of a decoder layer with the usual modules, all of them PackedLinear; None for any other layer."""
    mlp, norm = getattr(layer, "mlp", None), getattr(layer, "post_attention_layernorm", None)
    if not isinstance(mlp, FusedMlp) or not isinstance(norm, FusedNorm) or norm.weight.numel() > MAX_ROW:
        return None
    gate_up, down = mlp.gate_up, mlp.down
    if not isinstance(gate_up, PackedLinear) or not isinstance(down, PackedLinear):
        return None
    return MlpMatrices(norm, gate_up, down)


class FusedDenseMlp:
    """The MLP (a LayerPart) of a layer, where it is one for all tokens."""

    is_fused = True

    def __init__(self, matrices: MlpMatrices) -> None:
        self._matrices = matrices

    def can_prefill(self) -> bool:
        return shared_gemm(self._matrices.down, self._matrices.gate_up) is not None

    def decode(self, hidden: torch.Tensor, arguments: LayerArguments) -> torch.Tensor:
        matrices, down = self._matrices, self._matrices.down
        gated = multiply_normed(
            matrices.gate_up, hidden, matrices.norm, "swiglu", inverse_permutation=down.inverse_permutation
        )
        return down.kernels.multiply(down.matrix, gated, "residual", down.bias, hidden)

    def prefill(self, hidden: torch.Tensor, arguments: LayerArguments) -> torch.Tensor:
        down = self._matrices.down
        gemm = down.prefill_backend
        assert isinstance(gemm, FusedDequantGemm)
        # A function of its own, so that its buffers are freed when it returns, as the memory plan counts them.
        gated = self._prefill_gated(gemm, hidden)
        return gemm.multiply_swizzled(down.matrix, gated, hidden.shape[0], down.bias, hidden)

    def _prefill_gated(self, gemm: FusedDequantGemm, hidden: torch.Tensor) -> torch.Tensor:
        matrices = self._matrices
        both = prefill_normed(gemm, matrices.gate_up, hidden, matrices.norm)
        return gemm.swiglu_rows(matrices.down.matrix, both, matrices.down.inverse_permutation)
