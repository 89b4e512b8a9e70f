"""A Gated DeltaNet layer in captured steps: its rule by our own kernels, and all of the mixer in a few of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from core.worker.decode.fused_modules import FusedNorm
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
from core.worker.kernels.recurrent import DeltaWeights, Projected
from core.worker.kernels.recurrent_check import delta_kernels_for
from core.worker.kernels.row_layout import IN_ORDER, RowLayout
from core.worker.kernels.row_norm import MAX_ROW
from core.worker.model.layer_state import RecurrentState
from core.worker.model.recurrent_layers import GatedDeltaNetLayer

if TYPE_CHECKING:
    from core.worker.decode.graph_cache import GraphCache


class DeltaRule:
    """What a layer computes between its first matrices and its last one."""

    def __init__(self, layer: GatedDeltaNetLayer, state: RecurrentState, num_slots: int) -> None:
        """Raises TypeError, ValueError or CudaCodeError for a layer that the kernels do not take."""
        conv, norm = layer.conv_weight, layer.norm
        assert isinstance(norm, nn.Module) and state.state is not None
        if layer.conv_bias is not None or norm.weight.dtype != conv.dtype:
            raise TypeError("a recurrent layer with a bias, or with weights of two types")
        self._mixer, self._state = layer.delta_net, state
        self._kernels = delta_kernels_for(layer.delta_net, conv.dtype, num_slots, conv.device)
        self._weights = DeltaWeights(
            conv.contiguous(), layer.A_log.float(), layer.dt_bias.float(), norm.weight, norm.variance_epsilon
        )

    def project(self, parts: Mapping[str, torch.Tensor]) -> Projected:
        """Of what each of the layer's first matrices gave, by its name: [tokens, ..]."""
        if "in_proj_qkvz" in parts:
            return Projected.by_key_head(self._mixer, parts["in_proj_qkvz"], parts["in_proj_ba"])
        names = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
        return Projected.side_by_side(self._mixer, *(parts[name] for name in names))

    def step(self, projected: Projected, cache: GraphCache, layout: RowLayout = IN_ORDER) -> torch.Tensor:
        """One new token a row -> what the last matrix takes [rows, value heads * value dim], in its `layout`."""
        conv, state = self._state.conv, self._state.state
        assert state is not None
        return self._kernels.step(projected, self._weights, conv, state, cache.slots, cache.columns, layout)

    def chunk(self, projected: Projected, cache: GraphCache) -> torch.Tensor:
        """A chunk of one slot's text -> [tokens, value heads * value dim]."""
        conv, state = self._state.conv, self._state.state
        assert state is not None
        return self._kernels.chunk(
            projected, self._weights, conv, state, cache.chunk_slot, cache.chunk_bounds, cache.kept
        )


@dataclass(frozen=True, slots=True)
class DeltaMatrices:
    """The norm and matrices of a Gated DeltaNet layer."""

    norm: FusedNorm
    layer: GatedDeltaNetLayer
    inputs: InputMatrices
    out: nn.Module


def find_delta_matrices(layer: nn.Module) -> DeltaMatrices | None:
    """Those of a decoder layer that has such a mixer, where the kernels take all of them."""
    mixer, norm = getattr(layer, "linear_attn", None), getattr(layer, "input_layernorm", None)
    if not isinstance(mixer, GatedDeltaNetLayer) or not isinstance(norm, FusedNorm) or norm.weight.numel() > MAX_ROW:
        return None
    inputs, out = find_input_matrices(mixer, mixer.input_names), getattr(mixer, "out_proj", None)
    return DeltaMatrices(norm, mixer, inputs, out) if inputs and out is not None and can_multiply_out(out) else None


class FusedDeltaNet:
    """The mixer (a LayerPart) of a layer, where it is a Gated DeltaNet."""

    is_fused = True

    def __init__(self, matrices: DeltaMatrices, rule: DeltaRule) -> None:
        self._matrices, self._rule = matrices, rule

    def can_prefill(self) -> bool:
        matrices = self._matrices
        return matrices.inputs.can_prefill() and can_prefill_out(matrices.out, matrices.inputs)

    def decode(self, hidden: torch.Tensor, arguments: LayerArguments) -> torch.Tensor:
        matrices, out = self._matrices, self._matrices.out
        rows = matrices.inputs.decode(hidden, matrices.norm)
        projected = self._rule.project(matrices.inputs.split(rows))
        mixed = self._rule.step(projected, arguments["past_key_values"], layout_of(out, hidden))
        return multiply_out(out, mixed, hidden)

    def prefill(self, hidden: torch.Tensor, arguments: LayerArguments) -> torch.Tensor:
        # A function of its own, so that its buffers are freed when it returns, as the memory plan counts them.
        mixed = self._prefill_mixed(hidden, arguments)
        return prefill_out(self._matrices.out, mixed, hidden)

    def _prefill_mixed(self, hidden: torch.Tensor, arguments: LayerArguments) -> torch.Tensor:
        inputs = self._matrices.inputs
        projected = self._rule.project(inputs.split(inputs.prefill(hidden, self._matrices.norm)))
        return self._rule.chunk(projected, arguments["past_key_values"])
