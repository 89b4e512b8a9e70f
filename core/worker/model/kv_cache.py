"""What the layers keep of all chats, keys and values or recurrent states: one row a slot, at a position of its own.

transformers' model classes get it as `past_key_values`; they only call `update`. Our recurrent layers take `state`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from core.memory.layer_state import num_snapshots
from core.worker.model.layer_state import RecurrentState, StateRows
from core.worker.model.state_history import StateHistory


@dataclass(frozen=True, slots=True)
class KvShape:
    """A layer's key and value heads, and where they lie."""

    num_kv_heads: int
    head_dim: int
    device: torch.device


class SlotCache:
    """Keys and values by layer, [num_slots, num_kv_heads, context_tokens + 1, head_dim], allocated at once on the
    layer's device. The last column is never read. `set_targets` precedes every forward pass.

    A layer that keeps no keys and values of its own has none here. `states`: those of the recurrent layers, by index.
    Before a pass, `begin_prefill` or `begin_decode` says which tokens of which slots these take in.
    """

    def __init__(
        self,
        num_slots: int,
        context_tokens: int,
        dtype: torch.dtype,
        layers: Mapping[int, KvShape],
        states: Mapping[int, RecurrentState] | None = None,
    ) -> None:
        """layers: the shapes by the index of the layer."""

        def allocate(shape: KvShape) -> torch.Tensor:
            size = (num_slots, shape.num_kv_heads, context_tokens + 1, shape.head_dim)
            return torch.zeros(size, dtype=dtype, device=shape.device)

        self.keys = {index: allocate(shape) for index, shape in layers.items()}
        self.values = {index: allocate(shape) for index, shape in layers.items()}
        self.context_tokens = context_tokens
        self.unread_column = context_tokens
        self.num_slots = num_slots
        self.states = dict(states or {})
        self._history = StateHistory(num_slots, num_snapshots(num_slots), self._copy_row, self._clear_row)
        self._devices = dict.fromkeys(tensor.device for tensor in self.tensors)
        self._rows = slice(0, 1)
        self._length = 0
        self._is_slice = True
        # By device: the rows' indices [rows, 1], the columns [rows, new tokens], the rows of recurrent states [rows].
        self._targets: dict[torch.device, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All keys, then all values, then all recurrent states."""
        states = [tensor for state in self.states.values() for tensor in state.tensors]
        return [*self.keys.values(), *self.values.values(), *states]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    @property
    def has_states(self) -> bool:
        """Whether there are recurrent layers, which can only go back to tokens that a snapshot is kept of."""
        return bool(self.states)

    def state(self, layer_idx: int) -> RecurrentState:
        """A recurrent layer's states."""
        return self.states[layer_idx]

    def reusable_tokens(self, slot: int, num_tokens: int) -> int:
        """How many of the slot's first `num_tokens` tokens a new prompt can go on from: all of them without recurrent
        layers, else the most that a state is there for."""
        return self._history.reusable_tokens(slot, num_tokens) if self.states else num_tokens

    def begin_prefill(self, slot: int, begin: int, num_tokens: int) -> None:
        """The next pass takes in the slot's `num_tokens` tokens from `begin` on, which is 0, where the last pass ended,
        or what `reusable_tokens` named."""
        if self.states:
            self._history.begin(slot, begin)
            self._history.advance(slot, num_tokens)

    def clear_states(self) -> None:
        """Set all recurrent states to zero. For the time before the first request: what was kept of chats is lost."""
        if self.states:
            torch._foreach_zero_([one for state in self.states.values() for one in state.tensors])

    def begin_decode(self, slots: Sequence[int]) -> None:
        """The next pass takes in one token of each of `slots`."""
        for slot in slots if self.states else ():
            self._history.advance(slot, 1)

    def set_targets(self, rows: slice, columns: torch.Tensor, length: int) -> None:
        """The next forward pass reads the first `length` columns of the slots `rows`, and writes `columns` [rows, new
        tokens] of them. A row that writes the unread column leaves its slot's recurrent states alone."""
        self._rows, self._length = rows, length
        # One row writes the last columns that it reads: as a slice, which is faster than an index.
        self._is_slice = columns.shape[0] == 1
        row_index = torch.arange(columns.shape[0], device=columns.device)
        state_rows = row_index
        if self.states:
            state_rows = torch.where(columns[:, 0] == self.unread_column, self.num_slots, row_index + rows.start)
        self._targets = {
            device: (row_index.unsqueeze(1).to(device), columns.to(device), state_rows.to(device))
            for device in self._devices
        }

    def columns_on(self, device: torch.device) -> torch.Tensor:
        """The columns [rows, new tokens] that the next pass writes: its tokens' positions, but for rows without any."""
        return self._targets[device][1]

    def state_rows_on(self, device: torch.device) -> StateRows:
        """The rows of recurrent states that the next pass reads and writes."""
        return StateRows(self._targets[device][2])

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values [rows, kv heads, new tokens, head dim]; the keys and values that the pass reads."""
        keys, values = self.keys[layer_idx][self._rows], self.values[layer_idx][self._rows]
        if self._is_slice:
            begin = self._length - key.shape[2]
            keys[:, :, begin : self._length] = key
            values[:, :, begin : self._length] = value
        else:
            # Indices around a slice put the indexed dimensions first: [rows, new tokens, kv heads, head dim].
            row_index, columns, _ = self._targets[keys.device]
            keys[row_index, :, columns] = key.transpose(1, 2)
            values[row_index, :, columns] = value.transpose(1, 2)
        return keys[:, :, : self._length], values[:, :, : self._length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Only asked for by models that are given no positions; the engine always gives them."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Length and offset of the keys. Only asked for by models that make a mask of their own."""
        return self._length, 0

    def _copy_row(self, source: int, target: int) -> None:
        tensors = [one for state in self.states.values() for one in state.tensors]
        torch._foreach_copy_([one[target] for one in tensors], [one[source] for one in tensors])

    def _clear_row(self, row: int) -> None:
        torch._foreach_zero_([one[row] for state in self.states.values() for one in state.tensors])
