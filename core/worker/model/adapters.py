"""LoRA adapters beside a model's quantized matrices: W x + B (weights * A x), each row with an adapter of its own.

The matrices of all resident adapters lie side by side, and a row's weights are 0 for all columns but its own adapter's.
So one pass serves rows with different adapters, with shapes that never change, and what a row gets does not depend on
the others. `scale` of the adapter is in B already; a row's weight is what the request asks beyond it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from core.memory.adapter_room import AdapterRoom

# (A [rank, in], scale * B [out, rank]) by the module's name.
AdapterWeights = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


class AdapterBank:
    """The resident adapters, in `room.count` places, and which of them each slot uses. Slot `num_slots` pads."""

    def __init__(self, room: AdapterRoom, num_slots: int, device: torch.device, dtype: torch.dtype) -> None:
        self.room, self.device, self.dtype = room, device, dtype
        self._of_slots = torch.zeros((num_slots + 1, room.columns), dtype=dtype, device=device)
        self._used = [False] * (num_slots + 1)
        self.linears: dict[str, AdapterLinear] = {}
        # Of the rows of the pass that runs, [rows, 1, columns]; None where no row has an adapter.
        self.weights: torch.Tensor | None = None

    def add(self, name: str, linear: AdapterLinear) -> None:
        """`linear` is the model's matrix `name`, and takes this bank's adapters from now on."""
        self.linears[name] = linear

    def put(self, place: int, weights: AdapterWeights) -> None:
        """Put an adapter, of a rank up to the room's, into a place that no running slot uses."""
        begin = place * self.room.rank
        for name, linear in self.linears.items():
            a, b = weights.get(name, (None, None))
            rank = 0 if a is None else a.shape[0]
            if a is not None and b is not None:
                linear.a[begin : begin + rank].copy_(a)
                linear.b[:, begin : begin + rank].copy_(b)
            linear.a[begin + rank : begin + self.room.rank] = 0
            linear.b[:, begin + rank : begin + self.room.rank] = 0

    def set_slot(self, slot: int, place: int | None, weight: float = 1.0) -> None:
        """The slot's passes use the adapter in `place` from now on, `weight` times as strong; None: none."""
        self._of_slots[slot] = 0
        if place is not None:
            self._of_slots[slot, place * self.room.rank : (place + 1) * self.room.rank] = weight
        self._used[slot] = place is not None

    def select(self, slots: range) -> None:
        """The next pass has a row for each of `slots`."""
        any_used = any(self._used[slot] for slot in slots)
        self.weights = self._of_slots[slots.start : slots.stop].unsqueeze(1) if any_used else None

    def select_captured(self, slots: torch.Tensor) -> None:
        """As `select`, for slots [rows] that lie in GPU memory: what a captured pass computes cannot depend on them."""
        self.weights = self._of_slots.index_select(0, slots).unsqueeze(1)


class AdapterLinear(nn.Module):
    """Stands in for `base`, one matrix of a model, with the adapters of `bank` beside it."""

    def __init__(self, base: nn.Module, sizes: tuple[int, int], bank: AdapterBank) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = sizes
        like = {"dtype": bank.dtype, "device": bank.device}
        self.a = torch.zeros((bank.room.columns, self.in_features), **like)
        self.b = torch.zeros((self.out_features, bank.room.columns), **like)
        object.__setattr__(self, "bank", bank)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, tokens, in], or [rows * tokens, in] -> the same with the outputs."""
        out: torch.Tensor = self.base(x)
        weights = self.bank.weights
        if weights is None:
            return out
        low = nn.functional.linear(x, self.a)
        by_row = low.reshape(weights.shape[0], -1, low.shape[-1])
        # Not by a product alone: another adapter's column may be infinite, and 0 times that is no number.
        kept = torch.where(weights != 0, by_row * weights, 0.0).reshape(low.shape)
        return out + nn.functional.linear(kept, self.b)


def add_adapters(
    model: PreTrainedModel, sizes: Mapping[str, tuple[int, int]], room: AdapterRoom, num_slots: int
) -> AdapterBank:
    """Put an AdapterLinear in the place of each of the matrices `sizes`, by name with their (in, out) features."""
    parameter = model.get_input_embeddings().weight
    bank = AdapterBank(room, num_slots, parameter.device, parameter.dtype)
    for name, size in sizes.items():
        owner, _, attribute = name.rpartition(".")
        linear = AdapterLinear(model.get_submodule(name), size, bank)
        setattr(model.get_submodule(owner), attribute, linear)
        bank.add(name, linear)
    return bank
