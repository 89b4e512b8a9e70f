"""The experts of a model on their way from the files, which have each by itself, to one module a layer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.experts import ExpertMatrix as ExpertName
from core.checkpoint.experts import are_cut_in_halves, expert_matrix
from core.common.errors import EngineError
from core.worker.model.backends.base import KernelBackend
from core.worker.model.experts import ExpertMatrix, ExpertTensors, activation_of, has_experts


class ExpertStack:
    """The experts of one layer: `module` is transformers' own for all of them. `has_one_input`: the files have one
    matrix for gate and up. `is_cut`: they have the halves of one."""

    def __init__(self, name: str, module: Any, has_one_input: bool, is_cut: bool) -> None:
        self.name, self.num_experts, self.has_bias = name, int(module.num_experts), bool(module.has_bias)
        self._module = module
        sides = tuple(module.down_proj.shape[1:])
        self._intermediate, self._hidden = sides if module.is_transposed else sides[::-1]
        self._has_one_input, self._is_in_order = has_one_input, has_one_input or is_cut
        self._parts: dict[str, dict[str, torch.Tensor]] = {}
        self._made: dict[str, ExpertMatrix] = {}
        self._missing = set(self.matrices())

    @property
    def stacked(self) -> set[str]:
        """The tensors of all experts, which the files have in pieces."""
        return {f"{self.name}.{one}" for one in self._module._parameters}

    def matrices(self) -> Iterator[str]:
        """The matrices that the files must have."""
        projections = ("gate_up_proj",) if self._has_one_input else ("gate_proj", "up_proj")
        for number in range(self.num_experts):
            yield from (f"{self.name}.{number}.{one}" for one in (*projections, "down_proj"))

    def needed(self, quantized: Collection[str]) -> set[str]:
        """The tensors that the files must have beside the codes and scales of the `quantized` matrices."""
        found = set()
        for name in self.matrices():
            found |= {f"{name}.weight"} if name not in quantized else set()
            found |= {f"{name}.bias"} if self.has_bias else set()
        return found

    def shapes(self, found: Collection[str]) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The shapes of the tensors in 16 bit among `found`."""
        for name in self.needed(()):
            one = expert_matrix(name)
            if name in found and one is not None:
                rows, columns = self.features(one)
                yield name, (columns, rows) if one.part == "weight" else (columns,)

    def features(self, one: ExpertName) -> tuple[int, int]:
        """How many inputs and outputs a matrix of an expert has."""
        if one.projection == "down_proj":
            return self._intermediate, self._hidden
        return self._hidden, self._intermediate * (2 if one.projection == "gate_up_proj" else 1)

    def put_plain(self, one: ExpertName, tensor: torch.Tensor) -> bool:
        """Take a tensor of a matrix in 16 bit; True with the last one of the layer."""
        name = f"{one.expert}.{one.projection}"
        parts = self._parts.setdefault(name, {})
        parts[one.part] = tensor
        if len(parts) < 1 + self.has_bias:
            return False
        rows, columns = self.features(one)
        linear = nn.Linear(rows, columns, bias=self.has_bias, device="meta")
        for part, value in self._parts.pop(name).items():
            setattr(linear, part, nn.Parameter(value, requires_grad=False))
        return self.put([name], linear)

    def put(self, names: Collection[str], matrix: ExpertMatrix) -> bool:
        """Take a matrix that is all of `names`; True with the last one of the layer."""
        self._made[next(iter(names))] = matrix
        self._missing -= set(names)
        return not self._missing

    def make(self, backend: KernelBackend) -> nn.Module:
        """The module of all experts; what it is made of is let go."""
        made, self._made = self._made, {}
        experts = []
        for number in range(self.num_experts):
            owner = f"{self.name}.{number}"
            inputs = [made.pop(f"{owner}.{one}", None) for one in ("gate_up_proj", "gate_proj", "up_proj")]
            down = made.pop(f"{owner}.down_proj")
            experts.append(ExpertTensors([one for one in inputs if one is not None], down))
        return backend.make_experts(experts, activation_of(self._module, self._is_in_order))


def find_stacks(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, ExpertStack]:
    """The layers of `model` whose experts the files have one by one, by the name of the module that holds them.

    Raises EngineError "architecture" for experts that have more than two products and what is between.
    """
    projections: dict[str, set[str]] = {}
    for name in checkpoint.tensors:
        one = expert_matrix(name)
        if one is not None:
            projections.setdefault(one.stack, set()).add(one.projection)
    modules: Mapping[str, Any] = dict(model.named_modules())
    found = {}
    for owner, kinds in projections.items():
        module = modules.get(owner)
        if module is None or not has_experts(module):
            continue
        if module.has_post_expert_norm or not module.has_gate:
            raise EngineError("architecture", model=model.config.model_type, architecture=type(model).__name__)
        found[owner] = ExpertStack(owner, module, "gate_up_proj" in kinds, are_cut_in_halves(checkpoint.config))
    return found
