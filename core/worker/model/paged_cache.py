"""Keys and values in pages of PAGE_TOKENS columns, of which each slot has those that its row of a table names.

Our own attention kernels read them there (core/worker/kernels). Plain passes gather them, which is slow: a load's
checks, and models whose steps could not be captured after all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from core.memory.pages import PAGE_TOKENS, full_pages, pages_of, table_row
from core.worker.kernels.kv_pages import KvPages
from core.worker.model.kv_cache import KvShape, SlotCache
from core.worker.model.layer_state import RecurrentState


class PagedCache(SlotCache):
    """Keys and values by layer, [num_pages + 1, num_kv_heads, PAGE_TOKENS, head_dim], on the layer's device; the last
    page is the padding page, which takes what nobody reads.

    table [num_slots + 1, pages of a context and one column more], int32, the same on each of these devices: the page of
    each PAGE_TOKENS columns of a slot. What a slot has no page for lies in the padding page, and so does all of the
    last row, for rows of a step without a request. Where there are pages enough each slot has its own from the
    beginning; else none has any until `set_pages`.
    """

    page_tokens = PAGE_TOKENS

    def __init__(
        self,
        num_slots: int,
        context_tokens: int,
        num_pages: int,
        dtype: torch.dtype,
        layers: Mapping[int, KvShape],
        states: Mapping[int, RecurrentState] | None = None,
        bits: int = 16,
    ) -> None:
        self.num_pages = num_pages
        super().__init__(num_slots, context_tokens, dtype, layers, states, bits)
        table = torch.full((num_slots + 1, table_row(context_tokens)), num_pages, dtype=torch.int32)
        if num_pages >= full_pages(num_slots, context_tokens):
            each = pages_of(context_tokens)
            table[:num_slots, :each] = torch.arange(num_slots * each).view(num_slots, each)
        devices = [shape.device for shape in layers.values()] or [torch.device("cpu")]
        self._tables = {device: table.to(device) for device in dict.fromkeys(devices)}

    def _size(self, shape: KvShape) -> tuple[int, int, int, int]:
        return self.num_pages + 1, shape.num_kv_heads, PAGE_TOKENS, shape.head_dim

    @property
    def num_bytes(self) -> int:
        return super().num_bytes + sum(int(table.nbytes) for table in self._tables.values())

    def set_pages(self, slot: int, pages: Sequence[int]) -> None:
        """Let the slot's columns lie in `pages`, in order: for the steps that are enqueued from now on."""
        rest = [self.num_pages] * (table_row(self.context_tokens) - len(pages))
        is_on_gpu = any(device.type == "cuda" for device in self._tables)
        row = torch.tensor([*pages, *rest], dtype=torch.int32, pin_memory=is_on_gpu)
        for table in self._tables.values():
            table[slot].copy_(row, non_blocking=is_on_gpu)

    def layer(self, index: int) -> KvPages:
        """A layer's keys and values."""
        keys, scales = self.keys[index], (self.key_scales.get(index), self.value_scales.get(index))
        return KvPages(keys, self.values[index], self._tables[keys.device], self.context_tokens + 1, *scales)

    def _written(self, tensor: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """As SlotCache's, of `tensor` [pages, kv heads, PAGE_TOKENS, ..]: a copy."""
        row_index, columns, _ = self._targets[tensor.device]
        table = self._tables[tensor.device][self._rows].long()
        # Indices around a slice put the indexed dimensions first: [rows, new tokens, kv heads, head dim].
        tensor[table[row_index, columns // PAGE_TOKENS], :, columns % PAGE_TOKENS] = new.transpose(1, 2)
        found = tensor[table[:, : pages_of(self._length)]].transpose(1, 2)
        return found.flatten(2, 3)[:, :, : self._length]
