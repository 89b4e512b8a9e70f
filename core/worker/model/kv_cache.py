"""What the layers keep of all chats, keys and values or recurrent states: one row a slot, at a position of its own.

transformers' model classes get it as `past_key_values`; they only call `update`. Our recurrent layers take `state`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from core.memory.layer_state import num_snapshots
from core.worker.model.integer_kv import dequantize, quantize
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
    page_tokens, num_pages: of a cache whose slots consist of pages (paged_cache.py); 0 here.
    """

    page_tokens = num_pages = 0

    def __init__(
        self,
        num_slots: int,
        context_tokens: int,
        dtype: torch.dtype,
        layers: Mapping[int, KvShape],
        states: Mapping[int, RecurrentState] | None = None,
        bits: int = 16,
    ) -> None:
        """layers: the shapes by the index of the layer. bits: of an element of keys and values; of 8 they are integers
        with scales (integer_kv.py)."""
        self.context_tokens = context_tokens
        self.unread_column = context_tokens
        self.num_slots = num_slots
        self.bits = bits
        stored = torch.int8 if bits == 8 else dtype

        def allocate() -> dict[int, torch.Tensor]:
            return {i: torch.zeros(self._size(one), dtype=stored, device=one.device) for i, one in layers.items()}

        def allocate_scales() -> dict[int, torch.Tensor]:
            scaled = layers if bits == 8 else {}
            return {i: torch.zeros(self._size(one)[:3], dtype=dtype, device=one.device) for i, one in scaled.items()}

        self.keys, self.values = allocate(), allocate()
        self.key_scales, self.value_scales = allocate_scales(), allocate_scales()
        self.states = dict(states or {})
        self._history = StateHistory(num_slots, num_snapshots(num_slots), self._copy_row, self._clear_row)
        self._devices = dict.fromkeys(tensor.device for tensor in self.tensors)
        self._rows = slice(0, 1)
        self._length = 0
        self._is_slice = True
        # By device: the rows' indices [rows, 1], the columns [rows, new tokens], the rows of recurrent states [rows].
        self._targets: dict[torch.device, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def _size(self, shape: KvShape) -> tuple[int, int, int, int]:
        return self.num_slots, shape.num_kv_heads, self.context_tokens + 1, shape.head_dim

    def set_pages(self, slot: int, pages: Sequence[int]) -> None:
        """Where slots are rows, none has pages."""

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All keys, then all values, the scales of both, then all recurrent states."""
        states = [tensor for state in self.states.values() for tensor in state.tensors]
        scales = [*self.key_scales.values(), *self.value_scales.values()]
        return [*self.keys.values(), *self.values.values(), *scales, *states]

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

    def copy_tokens(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the keys and values of the first `num_tokens` tokens of one row to another."""
        kinds = self.keys, self.values, self.key_scales, self.value_scales
        rows = [tensor for kind in kinds for tensor in kind.values()]
        torch._foreach_copy_(
            [one[target, :, :num_tokens] for one in rows], [one[source, :, :num_tokens] for one in rows]
        )

    def begin_prefill(self, slot: int, begin: int, num_tokens: int, kept_at: int = 0) -> int | None:
        """The next pass takes in the slot's `num_tokens` tokens from `begin` on, which is 0, where the last pass ended,
        or what `reusable_tokens` named. kept_at: a position behind `begin` up to which the pass keeps states on its
        way, in the row that this gives; without a row it keeps none."""
        if not self.states:
            return None
        self._history.begin(slot, begin)
        row = self._history.keep(slot, kept_at) if kept_at else None
        self._history.advance(slot, num_tokens)
        return row

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
        if self.bits == 16:
            return self._written(self.keys[layer_idx], key), self._written(self.values[layer_idx], value)
        return (
            self._quantized(self.keys[layer_idx], self.key_scales[layer_idx], key),
            self._quantized(self.values[layer_idx], self.value_scales[layer_idx], value),
        )

    def _quantized(self, tensor: torch.Tensor, scales: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        integers, own_scales = quantize(new)
        return dequantize(self._written(tensor, integers), self._written(scales.unsqueeze(-1), own_scales))

    def _written(self, tensor: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """What the pass reads of `tensor` [slots, kv heads, columns, ..], after `new` [rows, kv heads, new tokens, ..]
        is written there."""
        tensor = tensor[self._rows]
        if self._is_slice:
            tensor[:, :, self._length - new.shape[2] : self._length] = new
        else:
            # Indices around a slice put the indexed dimensions first: [rows, new tokens, kv heads, head dim].
            row_index, columns, _ = self._targets[tensor.device]
            tensor[row_index, :, columns] = new.transpose(1, 2)
        return tensor[:, :, : self._length]

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
