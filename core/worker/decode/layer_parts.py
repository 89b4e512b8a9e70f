"""The two parts of a decoder layer: the mixer (attention, or a layer with a state) and the MLP.

Each has the norm before it and the residual sum after it. FusedDecoderLayer runs one of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn

from core.memory.kernels.llamadeck import has_fused_prefill
from core.worker.decode.fused_modules import FusedNorm
from core.worker.kernels.dense_small_batch import MOST_ROWS
from core.worker.kernels.low_rank import MAX_NORMED_ROW
from core.worker.kernels.packed_prefill import MIN_STEP_ROWS, FusedDequantGemm, gemm_of
from core.worker.kernels.packed_small_batch import PackedLinear
from core.worker.kernels.packed_variants import MAX_NORMED
from core.worker.kernels.row_norm import norm_rows
from core.worker.model.adapters import AdapterLinear

# So many weights a matrix has that cuBLAS multiplies rows faster than dense_small_batch.py, which reads the weights
# once for up to MOST_ROWS rows, and again for more.
HUGE_WEIGHTS, LARGE_WEIGHTS = 3 * 2**23, 2**20
# What a model calls its decoder layer with, by name: "past_key_values" (a GraphCache), "position_embeddings", ...
LayerArguments = Mapping[str, Any]


class LayerPart(Protocol):
    """The mixer or the MLP of a decoder layer. It keeps the layer's own modules and weights, and no copies."""

    is_fused: bool

    def can_prefill(self) -> bool:
        """Whether `prefill` may be called."""

    def decode(self, hidden: torch.Tensor, arguments: LayerArguments) -> torch.Tensor:
        """hidden [rows, size] of one new token a row, at most MAX_SMALL_BATCH rows -> the same shape."""

    def prefill(self, hidden: torch.Tensor, arguments: LayerArguments) -> torch.Tensor:
        """hidden [tokens, size] of one chat's chunk -> the same shape."""


class PlainMixer:
    """A layer's own attention, in a layer whose MLP is fused."""

    is_fused = False

    def __init__(self, norm: nn.Module, attention: nn.Module) -> None:
        self._norm, self._attention = norm, attention

    def can_prefill(self) -> bool:
        return True

    def decode(self, hidden: torch.Tensor, arguments: LayerArguments) -> torch.Tensor:
        return self._run(hidden.unsqueeze(1), arguments).squeeze(1)

    def prefill(self, hidden: torch.Tensor, arguments: LayerArguments) -> torch.Tensor:
        return self._run(hidden.unsqueeze(0), arguments).squeeze(0)

    def _run(self, hidden: torch.Tensor, arguments: LayerArguments) -> torch.Tensor:
        attended = self._attention(hidden_states=self._norm(hidden), **arguments)
        added: torch.Tensor = attended[0] if isinstance(attended, tuple) else attended
        return hidden + added


class PlainMlp:
    """A layer's own MLP, in a layer whose mixer is fused."""

    is_fused = False

    def __init__(self, norm: nn.Module, mlp: nn.Module) -> None:
        self._norm, self._mlp = norm, mlp

    def can_prefill(self) -> bool:
        return True

    def decode(self, hidden: torch.Tensor, arguments: LayerArguments) -> torch.Tensor:
        return self._run(hidden.unsqueeze(1)).squeeze(1)

    def prefill(self, hidden: torch.Tensor, arguments: LayerArguments) -> torch.Tensor:
        return self._run(hidden.unsqueeze(0)).squeeze(0)

    def _run(self, hidden: torch.Tensor) -> torch.Tensor:
        out = self._mlp(self._norm(hidden))
        # Experts may give the router's numbers as well.
        added: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return hidden + added


# A quantized matrix in our kernels, or one with adapters beside it.
Packed: TypeAlias = PackedLinear | AdapterLinear


def packed_of(module: object) -> PackedLinear | None:
    """The quantized matrix that `module` is, or stands in for with adapters beside it, which our kernels compute; None
    for anything else."""
    packed = module.base if isinstance(module, AdapterLinear) and module.bank.kernels else module
    return packed if isinstance(packed, PackedLinear) else None


def find_normed(module: object) -> Packed | None:
    """`module` where `multiply_normed` takes it."""
    if isinstance(module, AdapterLinear):
        return module if packed_of(module) and module.in_features <= MAX_NORMED_ROW else None
    return module if isinstance(module, PackedLinear) else None


def multiply_packed(
    module: Packed, x: torch.Tensor, epilogue: str, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """A product of rows [rows, inputs] that lie in the matrix's order, with what their adapters add."""
    linear = packed_of(module)
    assert linear is not None
    low = module.low_rank(x, linear.inverse_permutation) if isinstance(module, AdapterLinear) else None
    return linear.kernels.multiply(linear.matrix, x, epilogue, linear.bias, residual, low=low)


def multiply_normed(
    module: Packed, hidden: torch.Tensor, norm: FusedNorm, epilogue: str, **more: torch.Tensor | None
) -> torch.Tensor:
    """A product of the RMS-normed rows [rows, size], with what their adapters add; one row takes one kernel."""
    linear = packed_of(module)
    assert linear is not None
    matrix, multiply = linear.matrix, linear.kernels.multiply
    low = module.low_rank(hidden, norm=norm.before(None)) if isinstance(module, AdapterLinear) else None
    if hidden.shape[0] == 1 and matrix.inputs <= MAX_NORMED:
        before = norm.before(linear.inverse_permutation)
        return multiply(matrix, hidden, epilogue, linear.bias, norm=before, low=low, **more)
    normed, sums = norm_rows(
        hidden, norm.weight, norm.eps, linear.kernels.inputs_per_group, linear.inverse_permutation, norm.offset
    )
    return multiply(matrix, normed, epilogue, linear.bias, sums=sums, low=low, **more)


def prefill_normed(
    gemm: FusedDequantGemm,
    linear: PackedLinear,
    hidden: torch.Tensor,
    norm: FusedNorm,
    out: torch.Tensor | None = None,
    plain: torch.Tensor | None = None,
) -> torch.Tensor:
    """A product of the RMS-normed rows [tokens, size] of a chunk. out: takes the result; plain: the normed rows."""
    swizzled = gemm.rmsnorm_rows(linear.matrix, hidden, norm.before(linear.inverse_permutation), plain)
    return gemm.multiply_swizzled(linear.matrix, swizzled, hidden.shape[0], linear.bias, out=out)


def are_many(hidden: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether rows [rows, size] of a step are so many that cuBLAS multiplies them faster with an unquantized matrix
    [outputs, size]: where that was measured. A small matrix takes less time than what cuBLAS begins with."""
    if hidden.shape[0] < MIN_STEP_ROWS or not has_fused_prefill(torch.cuda.get_device_capability(hidden.device)):
        return False
    least = HUGE_WEIGHTS if hidden.shape[0] <= MOST_ROWS else LARGE_WEIGHTS
    return bool(weight.numel() >= least)


def faster_gemm(module: nn.Module, hidden: torch.Tensor) -> FusedDequantGemm | None:
    """The same, where it multiplies the rows [rows, size] of a step faster than the kernels for few rows."""
    return gemm_of(module) if hidden.shape[0] >= MIN_STEP_ROWS else None


def shared_gemm(*linears: Packed) -> FusedDequantGemm | None:
    """What multiplies many rows with all of `linears` from their codes; None where it is not one for all, or where one
    has adapters."""
    gemms = [one.prefill_backend for one in linears if isinstance(one, PackedLinear)]
    gemm = gemms[0] if gemms else None
    is_shared = len(gemms) == len(linears) and all(one is gemm for one in gemms)
    return gemm if is_shared and isinstance(gemm, FusedDequantGemm) else None
