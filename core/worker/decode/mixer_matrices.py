"""The matrices before and after a mixer, quantized or not: norm before, residual after, few rows or a chunk's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, takewhile

import torch
from torch import nn

from core.memory.kernels.llamadeck import has_fused_prefill
from core.worker.decode.fused_modules import FusedNorm
from core.worker.decode.layer_parts import (
    Packed,
    are_many,
    faster_gemm,
    find_normed,
    multiply_normed,
    multiply_packed,
    packed_of,
    prefill_normed,
    shared_gemm,
)
from core.worker.kernels.dense_small_batch import MAX_MATRICES, can_multiply_dense, dense_kernels_for
from core.worker.kernels.narrow_products import are_narrow, narrow_kernels_for
from core.worker.kernels.packed_prefill import MIN_STEP_ROWS, FusedDequantGemm, gemm_of, tile_rows_of
from core.worker.kernels.packed_small_batch import PackedLinear
from core.worker.kernels.row_layout import IN_ORDER, RowLayout
from core.worker.model.adapters import AdapterLinear
from core.worker.model.merged_linear import MergedLinearSlice


@dataclass(frozen=True, slots=True)
class InputMatrices:
    """Those that multiply a mixer's normed input: the `packed` ones, then the `dense` ones, side by side in a row.

    places: where the outputs of each projection lie, by its name.
    """

    packed: tuple[Packed, ...]
    dense: tuple[nn.Linear, ...]
    places: dict[str, slice]

    @property
    def out_features(self) -> int:
        return sum(one.out_features for one in (*self.packed, *self.dense))

    def are_in_order(self) -> bool:
        """Whether the projections lie side by side in the order of their names."""
        places = list(self.places.values())
        return all(one.stop == then.start for one, then in pairwise(places))

    def decode(self, hidden: torch.Tensor, norm: FusedNorm) -> torch.Tensor:
        """hidden [rows, size] of one new token a row -> [rows, all outputs]."""
        out, begin = self._empty_rows(hidden), 0
        if self._decode_beside_narrow(hidden, norm, out):
            return out
        for one in self.packed:
            place = out[:, begin : begin + one.out_features]
            if gemm := faster_gemm(one, hidden):
                assert isinstance(one, PackedLinear)
                prefill_normed(gemm, one, hidden, norm, place)
            else:
                multiply_normed(one, hidden, norm, "none", out=place)
            begin += one.out_features
        if self.dense:
            self._decode_dense(hidden, norm, out[:, begin:])
        return out

    def can_prefill(self) -> bool:
        return not self.packed or shared_gemm(*self.packed) is not None

    def prefill(self, hidden: torch.Tensor, norm: FusedNorm) -> torch.Tensor:
        """hidden [tokens, size] of one chat's chunk -> [tokens, all outputs]."""
        out, begin = self._empty_rows(hidden), 0
        normed = torch.empty_like(hidden) if self.packed and self.dense else None
        for linear in self.packed:
            assert isinstance(linear, PackedLinear)
            gemm, end = linear.prefill_backend, begin + linear.out_features
            assert isinstance(gemm, FusedDequantGemm)
            prefill_normed(gemm, linear, hidden, norm, out[:, begin:end], plain=None if begin else normed)
            begin = end
        if self.dense:
            rows = norm(hidden) if normed is None else normed
            multiply_each(rows, [one.weight for one in self.dense], out[:, begin:])
        return out

    def _decode_dense(self, hidden: torch.Tensor, norm: FusedNorm, out: torch.Tensor) -> None:
        """The first ones by cuBLAS, as far as that is faster; the others in one kernel."""
        weights, kernels = [one.weight for one in self.dense], dense_kernels_for(hidden.dtype, hidden.device)
        large = self._large(hidden)
        if not large:
            kernels.multiply(weights, hidden, norm=norm.before(None), out=out)
            return
        normed = norm(hidden)
        end = multiply_each(normed, large, out)
        if rest := weights[len(large) :]:
            kernels.multiply(rest, normed, out=out[:, end:])

    def _large(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        """The first of the dense weights, as far as cuBLAS is faster with so many rows."""
        return list(takewhile(partial(are_many, hidden), (one.weight for one in self.dense)))

    def _decode_beside_narrow(self, hidden: torch.Tensor, norm: FusedNorm, out: torch.Tensor) -> bool:
        """Where a step has many rows, and what follows the large matrices is narrow: one kernel norms the rows and
        multiplies them with the narrow matrices; then come the large ones. False, and nothing, elsewhere."""
        if hidden.shape[0] < MIN_STEP_ROWS or not has_fused_prefill(torch.cuda.get_device_capability(hidden.device)):
            return False
        weights = [one.weight for one in self.dense]
        large = [] if self.packed else self._large(hidden)
        narrow, linear = weights[len(large) :], self.packed[0] if len(self.packed) == 1 else None
        gemm = gemm_of(linear)
        is_in_order = not isinstance(linear, PackedLinear) or linear.inverse_permutation is None
        if not are_narrow(narrow) or not (gemm or large) or not is_in_order:
            return False
        kernels = narrow_kernels_for(hidden.dtype, tile_rows_of(hidden.shape[0]), hidden.device)
        beside = out[:, self.out_features - sum(one.shape[0] for one in narrow) :]
        if gemm is None:
            normed = torch.empty_like(hidden)
            kernels.norm_and_multiply(hidden, norm.before(None), narrow, normed, beside, is_swizzled=False)
            multiply_each(normed, large, out)
            return True
        assert isinstance(linear, PackedLinear)
        rows = gemm.empty_rows(linear.matrix, hidden)
        kernels.norm_and_multiply(hidden, norm.before(None), narrow, rows, beside, is_swizzled=True)
        gemm.multiply_swizzled(linear.matrix, rows, len(hidden), linear.bias, out=out[:, : linear.out_features])
        return True

    def split(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of rows [tokens, all outputs] those of each projection, by its name."""
        return {name: rows[:, place] for name, place in self.places.items()}

    def _empty_rows(self, hidden: torch.Tensor) -> torch.Tensor:
        # Each row begins on 16 bytes, whatever the numbers of outputs: kernels store eight values at once.
        padded = -(-self.out_features // 8) * 8
        out = torch.empty((hidden.shape[0], padded), dtype=hidden.dtype, device=hidden.device)
        return out[:, : self.out_features]


def multiply_each(rows: torch.Tensor, weights: Sequence[torch.Tensor], out: torch.Tensor) -> int:
    """rows [tokens, inputs] by each of `weights` [outputs, inputs], by cuBLAS, into `out` [tokens, ..] from its first
    column on, side by side; where they end."""
    begin = 0
    for weight in weights:
        end = begin + weight.shape[0]
        torch.mm(rows, weight.t(), out=out[:, begin:end])
        begin = end
    return begin


def find_input_matrices(owner: nn.Module, names: Sequence[str]) -> InputMatrices | None:
    """The projections `names` of `owner`; None where the kernels do not take one of them."""
    sources: dict[int, tuple[nn.Module, list[tuple[str, slice]]]] = {}
    for name in names:
        module = getattr(owner, name, None)
        if isinstance(module, MergedLinearSlice):
            source, place = module.merged, slice(module.begin, module.end)
        elif isinstance(module, PackedLinear | AdapterLinear | nn.Linear):
            source, place = module, slice(0, module.out_features)
        else:
            return None
        sources.setdefault(id(source), (source, []))[1].append((name, place))
    packed = [(found, parts) for one, parts in sources.values() if (found := find_normed(one))]
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
    return packed_of(linear) is not None or (isinstance(linear, nn.Linear) and can_multiply_dense(linear))


def layout_of(linear: nn.Module, residual: torch.Tensor) -> RowLayout:
    """How `multiply_out` wants what it multiplies, of as many rows as `residual`."""
    packed = packed_of(linear)
    tile_rows = tile_rows_of(residual.shape[0]) if faster_gemm(linear, residual) else 0
    return RowLayout(packed.inverse_permutation, tile_rows) if packed else IN_ORDER


def multiply_out(linear: nn.Module, mixed: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """mixed, as `layout_of` says -> the outputs plus `residual` [rows, size]."""
    if gemm := faster_gemm(linear, residual):
        assert isinstance(linear, PackedLinear)
        return gemm.multiply_swizzled(linear.matrix, mixed, residual.shape[0], linear.bias, residual)
    if isinstance(linear, nn.Linear) and are_many(mixed, linear.weight):
        return prefill_out(linear, mixed, residual)
    if isinstance(linear, PackedLinear | AdapterLinear):
        return multiply_packed(linear, mixed, "residual", residual)
    assert isinstance(linear, nn.Linear)
    return dense_kernels_for(mixed.dtype, mixed.device).multiply([linear.weight], mixed, residual)


def can_prefill_out(linear: nn.Module, inputs: InputMatrices) -> bool:
    """Whether `prefill_out` takes the matrix beside `inputs`."""
    if isinstance(linear, PackedLinear | AdapterLinear):
        return shared_gemm(linear, *inputs.packed) is not None
    return True


def prefill_out(linear: nn.Module, mixed: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """mixed [tokens, inputs], in the model's order -> the outputs plus `residual` [tokens, size]."""
    if isinstance(linear, PackedLinear):
        gemm = linear.prefill_backend
        assert isinstance(gemm, FusedDequantGemm)
        swizzled = gemm.permute_rows(linear.matrix, mixed)
        return gemm.multiply_swizzled(linear.matrix, swizzled, mixed.shape[0], linear.bias, residual)
    assert isinstance(linear, nn.Linear)
    return torch.addmm(residual, mixed, linear.weight.t())
