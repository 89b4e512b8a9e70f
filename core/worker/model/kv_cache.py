"""The KV cache: one row a slot, each at a position of its own.

transformers' model classes get it as `past_key_values`; they only call `update`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class KvShape:
    """A layer's key and value heads, and where they lie."""

    num_kv_heads: int
    head_dim: int
    device: torch.device


class SlotCache:
    """Keys and values by layer, [num_slots, num_kv_heads, context_tokens + 1, head_dim], allocated at once on the
    layer's device. The last column is never read. `set_targets` precedes every forward pass.

    A layer that keeps no keys and values of its own has none here.
    """

    def __init__(self, num_slots: int, context_tokens: int, dtype: torch.dtype, layers: Mapping[int, KvShape]) -> None:
        """layers: the shapes by the index of the layer."""

        def allocate(shape: KvShape) -> torch.Tensor:
            size = (num_slots, shape.num_kv_heads, context_tokens + 1, shape.head_dim)
            return torch.zeros(size, dtype=dtype, device=shape.device)

        self.keys = {index: allocate(shape) for index, shape in layers.items()}
        self.values = {index: allocate(shape) for index, shape in layers.items()}
        self.context_tokens = context_tokens
        self.unread_column = context_tokens
        self.num_slots = num_slots
        self._rows = slice(0, 1)
        self._length = 0
        self._is_slice = True
        # By device: the rows' indices [rows, 1] and the columns [rows, new tokens].
        self._targets: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All keys, then all values."""
        return [*self.keys.values(), *self.values.values()]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    def set_targets(self, rows: slice, columns: torch.Tensor, length: int) -> None:
        """The next forward pass reads the first `length` columns of the slots `rows`, and writes `columns` [rows, new
        tokens] of them."""
        self._rows, self._length = rows, length
        # One row writes the last columns that it reads: as a slice, which is faster than an index.
        self._is_slice = columns.shape[0] == 1
        row_index = torch.arange(columns.shape[0], device=columns.device).unsqueeze(1)
        devices = dict.fromkeys(keys.device for keys in self.keys.values())
        self._targets = {device: (row_index.to(device), columns.to(device)) for device in devices}

    def columns_on(self, device: torch.device) -> torch.Tensor:
        """The columns [rows, new tokens] that the next pass writes: its tokens' positions, but for rows without any."""
        return self._targets[device][1]

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
            row_index, columns = self._targets[keys.device]
            keys[row_index, :, columns] = key.transpose(1, 2)
            values[row_index, :, columns] = value.transpose(1, 2)
        return keys[:, :, : self._length], values[:, :, : self._length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Only asked for by models that are given no positions; the engine always gives them."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Length and offset of the keys. Only asked for by models that make a mask of their own."""
        return self._length, 0
