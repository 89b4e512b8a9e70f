"""LoRA adapters beside the experts of a layer: each token's own, in whichever experts it goes through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from core.memory.adapter_room import ExpertStackSizes
from core.worker.kernels.expert_low_rank import ExpertAdapters, ExpertLowRank, expert_low_rank_kernels_for
from core.worker.kernels.packed_experts import PackedExperts
from core.worker.model.adapters import AdaptedMatrix, AdapterBank, AdapterBanks
from core.worker.model.device_map import DeviceMap, embedding_name
from core.worker.model.experts import LoopedExperts


@dataclass(frozen=True, slots=True)
class TorchExpertAdapters:
    """What torch adds to the products of a layer's experts. inputs: of what comes before the activation, in the order
    of its outputs."""

    bank: AdapterBank
    inputs: Sequence[AdaptedMatrix]
    down: AdaptedMatrix

    @property
    def are_used(self) -> bool:
        """Whether any row of the pass that runs has an adapter."""
        return self.bank.slots is not None

    def add_inputs(self, expert: int, tokens: torch.Tensor, count: int, x: torch.Tensor, out: torch.Tensor) -> None:
        """To `out`, which one expert made of rows x; in place. tokens [rows]: which of the pass's `count` each is."""
        begin = 0
        for matrix in self.inputs:
            end = begin + matrix.b.shape[1]
            self._add(matrix, expert, tokens, count, x, out[:, begin:end])
            begin = end

    def add_down(self, expert: int, tokens: torch.Tensor, count: int, x: torch.Tensor, out: torch.Tensor) -> None:
        """As `add_inputs`, behind the activation."""
        self._add(self.down, expert, tokens, count, x, out)

    def _add(
        self, matrix: AdaptedMatrix, expert: int, tokens: torch.Tensor, count: int, x: torch.Tensor, out: torch.Tensor
    ) -> None:
        weights, unused = self.bank.column_weights()
        # Of each row of the pass follow as many tokens.
        rows = tokens // (count // weights.shape[0])
        low = nn.functional.linear(x, matrix.a[expert])
        # Not by a product alone: another adapter's column may be infinite, and 0 times that is no number.
        low.masked_fill_(unused[rows, 0], 0.0).mul_(weights[rows, 0])
        if out.dtype == low.dtype:
            out.addmm_(low, matrix.b[expert].T)
        else:
            out += nn.functional.linear(low, matrix.b[expert])


def add_expert_adapters(
    model: PreTrainedModel,
    stacks: Mapping[str, ExpertStackSizes],
    banks: AdapterBanks,
    device_map: DeviceMap | None = None,
) -> None:
    """Make room for adapters beside the experts of `model`, by the name of the module that holds those of a layer."""
    for name, sizes in stacks.items():
        bank = banks.banks[device_map.place_of(name, embedding_name(model)) if device_map else 0]
        made = {one: _matrix(bank, sizes.num_experts, *features) for one, features in sizes.matrices.items()}
        bank.matrices |= {f"{name}.{one}": matrix for one, matrix in made.items()}
        *inputs, down = made.values()
        experts = model.get_submodule(name)
        if isinstance(experts, PackedExperts):
            kernels = expert_low_rank_kernels_for(bank.dtype, bank.device)
            rank = bank.room.rank
            experts.adapt(ExpertAdapters(_stacked(inputs, rank), _stacked([down], rank), kernels, bank.of_pass))
        else:
            assert isinstance(experts, LoopedExperts)
            experts.adapters = TorchExpertAdapters(bank, inputs, down)


def _matrix(bank: AdapterBank, num_experts: int, inputs: int, outputs: int) -> AdaptedMatrix:
    columns = bank.room.columns
    a = torch.zeros((num_experts, columns, inputs), dtype=bank.dtype, device=bank.device)
    return AdaptedMatrix(a, torch.zeros((num_experts, outputs, columns), dtype=bank.dtype, device=bank.device))


def _stacked(matrices: Sequence[AdaptedMatrix], rank: int) -> ExpertLowRank:
    return ExpertLowRank(tuple(one.a for one in matrices), tuple(one.b for one in matrices), rank)
