"""The matrices before and after a mixer, quantized or not: norm before, residual after, few rows or a chunk's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from core.worker.decode.fused_modules import FusedNorm
from core.worker.decode.layer_parts import multiply_normed, prefill_normed, shared_gemm
from core.worker.kernels.dense_small_batch import MAX_MATRICES, can_multiply_dense, dense_kernels_for
from core.worker.kernels.packed_prefill import FusedDequantGemm
from core.worker.kernels.packed_small_batch import PackedLinear
from core.worker.model.merged_linear import MergedLinearSlice


@dataclass(frozen=True, slots=True)
class InputMatrices:
    """Those that multiply a mixer's normed input: the `packed` ones, then the `dense` ones, side by side in a row.

    places: where the outputs of each projection lie, by its name.
    """

    packed: tuple[PackedLinear, ...]
    dense: tuple[nn.Linear, ...]
    places: dict[str, slice]

    def decode(self, hidden: torch.Tensor, norm: FusedNorm) -> torch.Tensor:
        """hidden [rows, size] of one new token a row -> [rows, all outputs]."""
        size = sum(one.out_features for one in (*self.packed, *self.dense))
        out = torch.empty((hidden.shape[0], size), dtype=hidden.dtype, device=hidden.device)
        begin = 0
        for one in self.packed:
            multiply_normed(one, hidden, norm, "none", out=out[:, begin : begin + one.out_features])
            begin += one.out_features
        if self.dense:
            weights = [one.weight for one in self.dense]
            dense_kernels_for(hidden.dtype, hidden.device).multiply(
                weights, hidden, norm=norm.before(None), out=out[:, begin:]
            )
        return out

    def can_prefill(self) -> bool:
        return not self.packed or shared_gemm(*self.packed) is not None

    def prefill(self, hidden: torch.Tensor, norm: FusedNorm) -> dict[str, torch.Tensor]:
        """hidden [tokens, size] of one chat's chunk -> the outputs [tokens, ..] of each projection, by its name."""
        gemm = self.packed[0].prefill_backend if self.packed else None
        outputs: list[torch.Tensor] = []
        for linear in self.packed:
            assert isinstance(gemm, FusedDequantGemm)
            outputs.append(prefill_normed(gemm, linear, hidden, norm))
        if self.dense:
            normed = norm(hidden)
            outputs += [nn.functional.linear(normed, one.weight) for one in self.dense]
        return self._by_name(outputs)

    def _by_name(self, outputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        found, begin = {}, 0
        for output in outputs:
            end = begin + output.shape[1]
            for name, place in self.places.items():
                if begin <= place.start < end:
                    found[name] = output[:, place.start - begin : place.stop - begin]
            begin = end
        return found


def find_input_matrices(owner: nn.Module, names: Sequence[str]) -> InputMatrices | None:
    """The projections `names` of `owner`; None where the kernels do not take one of them."""
    sources: dict[int, tuple[nn.Module, list[tuple[str, slice]]]] = {}
    for name in names:
        module = getattr(owner, name, None)
        if isinstance(module, MergedLinearSlice):
            source, place = module.merged, slice(module.begin, module.end)
        elif isinstance(module, PackedLinear | nn.Linear):
            source, place = module, slice(0, module.out_features)
        else:
            return None
        sources.setdefault(id(source), (source, []))[1].append((name, place))
    packed = [(one, parts) for one, parts in sources.values() if isinstance(one, PackedLinear)]
    dense = [(one, parts) for one, parts in sources.values() if isinstance(one, nn.Linear) and can_multiply_dense(one)]
    if len(packed) + len(dense) < len(sources) or len(dense) > MAX_MATRICES:
        return None
    places: dict[str, slice] = {}
    begin = 0
    for one, parts in (*packed, *dense):
        places |= {name: slice(begin + part.start, begin + part.stop) for name, part in parts}
        begin += one.out_features
    return InputMatrices(tuple(one for one, _ in packed), tuple(one for one, _ in dense), places)


def can_multiply_out(linear: nn.Module | None) -> bool:
    """Whether `multiply_out` takes the matrix."""
    return isinstance(linear, PackedLinear) or (isinstance(linear, nn.Linear) and can_multiply_dense(linear))


def multiply_out(linear: nn.Module, mixed: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """mixed [rows, inputs], in the order of a quantized matrix's inputs -> its outputs plus `residual` [rows, size]."""
    if isinstance(linear, PackedLinear):
        return linear.kernels.multiply(linear.matrix, mixed, "residual", linear.bias, residual)
    assert isinstance(linear, nn.Linear)
    return dense_kernels_for(mixed.dtype, mixed.device).multiply([linear.weight], mixed, residual)


def can_prefill_out(linear: nn.Module, inputs: InputMatrices) -> bool:
    """Whether `prefill_out` takes the matrix beside `inputs`."""
    return not isinstance(linear, PackedLinear) or shared_gemm(linear, *inputs.packed) is not None


def prefill_out(linear: nn.Module, mixed: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """mixed [tokens, inputs], in the model's order -> the outputs plus `residual` [tokens, size]."""
    if isinstance(linear, PackedLinear):
        gemm = linear.prefill_backend
        assert isinstance(gemm, FusedDequantGemm)
        swizzled = gemm.permute_rows(linear.matrix, mixed)
        return gemm.multiply_swizzled(linear.matrix, swizzled, mixed.shape[0], linear.bias, residual)
    assert isinstance(linear, nn.Linear)
    return torch.addmm(residual, mixed, linear.weight.t())
