"""The experts of one layer in the place of transformers' own module, which keeps them in one tensor in 16 bit.

The router, shared experts and whatever is added or normalized stay transformers' modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import nn
from torch.nn.functional import silu

from core.worker.model.matrix_tensors import MatrixTensors

# Of one matrix or of several whose outputs lie side by side, what a backend makes a module of; in 16 bit the module.
ExpertMatrix: TypeAlias = Sequence[MatrixTensors] | nn.Linear


@dataclass(slots=True)
class ExpertTensors:
    """The matrices of one expert. `inputs`: gate and up as one matrix, gate's outputs first; or each by itself, where
    they are quantized in two ways or have their inputs in two orders. `down`: what follows the activation."""

    inputs: list[ExpertMatrix]
    down: ExpertMatrix


@dataclass(frozen=True, slots=True)
class GatedActivation:
    """What becomes of gate and up: `function` maps [rows, 2 * intermediate], gate first, to [rows, intermediate].

    `kind` names what a kernel may compute by itself. "silu": silu(gate) * up. "clamped_silu", of gpt-oss:
    (clamp(up, -limit, limit) + 1) * g * sigmoid(alpha * g) with g = min(gate, limit). "other": `function` alone tells.
    """

    function: Callable[[torch.Tensor], torch.Tensor]
    kind: Literal["silu", "clamped_silu", "other"] = "other"
    alpha: float = 0.0
    limit: float = 0.0


def silu_and_multiply(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, -1)
    return silu(gate) * up


SILU = GatedActivation(silu_and_multiply, "silu")


class ExpertAdapters(Protocol):
    """What adapters add to the products of a layer's experts (core/worker/model/expert_adapters.py)."""

    @property
    def are_used(self) -> bool:
        """Whether any row of the pass that runs has an adapter."""

    def add_inputs(self, expert: int, tokens: torch.Tensor, count: int, x: torch.Tensor, out: torch.Tensor) -> None:
        """Add to `out` what comes to the products of x before the activation. tokens [rows]: which of the pass's
        `count` tokens each row is."""

    def add_down(self, expert: int, tokens: torch.Tensor, count: int, x: torch.Tensor, out: torch.Tensor) -> None:
        """As `add_inputs`, behind the activation."""


class LoopedExperts(nn.Module):
    """Runs the experts that were chosen, one after the other. The numbers of rows are read on the host, so that it
    cannot be captured. adapters: beside them, where there is room for such."""

    def __init__(
        self, inputs: Sequence[Sequence[nn.Module]], downs: Sequence[nn.Module], activation: GatedActivation
    ) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(nn.ModuleList(one) for one in inputs)
        self.downs = nn.ModuleList(downs)
        self.activation = activation
        self.adapters: ExpertAdapters | None = None

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden_states [tokens, hidden], the chosen experts and their weights [tokens, k] -> [tokens, hidden].

        A token's sum is in float32 and in the order of the experts' numbers, whatever other tokens choose.
        """
        num_chosen = top_k_index.shape[-1]
        chosen = top_k_index.reshape(-1)
        by_expert = chosen.argsort(stable=True)
        tokens, weights = by_expert // num_chosen, top_k_weights.reshape(-1)[by_expert].float().unsqueeze(-1)
        out = torch.zeros(hidden_states.shape, dtype=torch.float32, device=hidden_states.device)
        begin = 0
        for expert, count in enumerate(torch.bincount(chosen, minlength=len(self.downs)).tolist()):
            if count:
                rows = tokens[begin : begin + count]
                result = self._run(expert, hidden_states, rows)
                out.index_add_(0, rows, result * weights[begin : begin + count])
                begin += count
        return out.to(hidden_states.dtype)

    def _run(self, expert: int, hidden_states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """What an expert makes of those `tokens` [rows] of hidden_states that chose it: [rows, hidden]."""
        rows, count = hidden_states[tokens], len(hidden_states)
        adapters = self.adapters if self.adapters is not None and self.adapters.are_used else None
        outputs = [module(rows) for module in self.inputs[expert]]
        gate_up = outputs[0].contiguous() if len(outputs) == 1 else torch.cat(outputs, -1)
        if adapters is not None:
            adapters.add_inputs(expert, tokens, count, rows, gate_up)
        gated = self.activation.function(gate_up)
        result: torch.Tensor = self.downs[expert](gated).contiguous()
        if adapters is not None:
            adapters.add_down(expert, tokens, count, gated, result)
        return result


def loop_experts(
    experts: Sequence[ExpertTensors],
    activation: GatedActivation,
    make: Callable[[Sequence[MatrixTensors]], nn.Module],
) -> LoopedExperts:
    """Experts whose matrices are what a backend's `make` makes of each."""

    def module(matrix: ExpertMatrix) -> nn.Module:
        return matrix if isinstance(matrix, nn.Linear) else make(matrix)

    inputs = [[module(matrix) for matrix in one.inputs] for one in experts]
    return LoopedExperts(inputs, [module(one.down) for one in experts], activation)


def has_experts(module: nn.Module) -> bool:
    """Whether `module` is transformers' for the experts of a layer: two tensors with all of them, and the name of
    what is between."""
    tensors = (getattr(module, name, None) for name in ("gate_up_proj", "down_proj"))
    return all(isinstance(one, nn.Parameter) and one.ndim == 3 for one in tensors) and hasattr(module, "_apply_gate")


def activation_of(module: Any, is_in_order: bool = False) -> GatedActivation:
    """What transformers' `module` of experts does between its matrices. `is_in_order`: outputs come in the order of its
    own tensor, where those of gate and up may take turns, and not gate's first."""
    if module.is_concatenated or is_in_order:
        function = module._apply_gate
    else:
        # Its outputs of gate and up take turns.
        def function(gate_up: torch.Tensor) -> torch.Tensor:
            gated: torch.Tensor = module._apply_gate(torch.stack(gate_up.chunk(2, -1), -1).flatten(-2))
            return gated

    sample = torch.linspace(-9, 9, 64).repeat(4, 1) * torch.tensor([[1.0], [-0.5], [2.0], [0.1]])
    wanted = function(sample)
    alpha, limit = getattr(module, "alpha", None), getattr(module, "limit", None)
    if torch.equal(wanted, silu_and_multiply(sample)):
        return SILU
    if isinstance(alpha, float) and isinstance(limit, float):
        gate, up = sample.chunk(2, -1)
        gate = gate.clamp(max=limit)
        if torch.allclose(wanted, (up.clamp(-limit, limit) + 1) * gate * torch.sigmoid(alpha * gate)):
            return GatedActivation(function, "clamped_silu", alpha, limit)
    return GatedActivation(function)
