"""Keys and values by slot as pages, and back."""

from __future__ import annotations

import torch

from core.memory.pages import PAGE_TOKENS, pages_of
from core.worker.kernels.kv_pages import KvPages
from core.worker.model.integer_kv import dequantize, quantize


def paged(keys: torch.Tensor, values: torch.Tensor, bits: int = 16) -> KvPages:
    """A copy of keys and values [slots, kv heads, columns, dim] in pages, in no order. What lies behind a slot's last
    column, and the padding page, is NaN; of 8 bit its scales are."""
    num_slots, num_heads, num_columns, dim = keys.shape
    each = pages_of(num_columns)
    order = torch.randperm(num_slots * each, generator=torch.Generator().manual_seed(5), device="cpu").to(keys.device)
    table = torch.full((num_slots + 1, each), num_slots * each, dtype=torch.int32, device=keys.device)
    table[:num_slots] = order.view(num_slots, each)

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        whole = torch.nn.functional.pad(tensor, (0, 0, 0, each * PAGE_TOKENS - num_columns), value=torch.nan)
        pages = torch.full((num_slots * each + 1, num_heads, PAGE_TOKENS, dim), torch.nan, device=keys.device)
        pages = pages.to(keys.dtype)
        pages[order] = whole.view(num_slots, num_heads, each, PAGE_TOKENS, dim).transpose(1, 2).flatten(0, 1)
        return pages

    if bits == 16:
        return KvPages(copied(keys), copied(values), table, num_columns)
    (keys, key_scales), (values, value_scales) = (quantize(copied(tensor)) for tensor in (keys, values))
    return KvPages(keys, values, table, num_columns, key_scales.squeeze(-1), value_scales.squeeze(-1))


def by_slot(pages: KvPages) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys and values of all slots, [slots, kv heads, columns, dim]."""

    def gathered(tensor: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
        tensor = tensor if scales is None else dequantize(tensor, scales.unsqueeze(-1))
        return tensor[pages.table[:-1].long()].transpose(1, 2).flatten(2, 3)[:, :, : pages.num_columns]

    return gathered(pages.keys, pages.key_scales), gathered(pages.values, pages.value_scales)
