"""A layer's keys and values as the attention kernels take them."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch

from core.memory.pages import PAGE_TOKENS


def page_defines(bits: int) -> dict[str, int]:
    """What kernels that know pages are compiled with. bits: of a key's or value's elements, 16 or 8."""
    return {"PAGE_TOKENS": PAGE_TOKENS, "CACHE_BITS": bits}


class _KvPages(ctypes.Structure):
    """As in cuda/pages.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("keys", "values", "key_scales", "value_scales", "table")),
        *((name, ctypes.c_longlong) for name in ("page_size", "head_size")),
        *((name, ctypes.c_int) for name in ("table_row", "kv_heads")),
    ]


class KvPages(NamedTuple):
    """keys, values [pages, kv heads, PAGE_TOKENS, dim]; table [num_slots + 1, pages of a slot], int32: which page holds
    each PAGE_TOKENS columns of a slot. num_columns: how many columns a slot has, at most.

    key_scales, value_scales [pages, kv heads, PAGE_TOKENS]: of keys and values in 8 bit, which are integers; None of
    those in 16 bit. Kernels find a head of a page by the first two strides, which keys and values share.
    """

    keys: torch.Tensor
    values: torch.Tensor
    table: torch.Tensor
    num_columns: int
    key_scales: torch.Tensor | None = None
    value_scales: torch.Tensor | None = None

    @property
    def bits(self) -> int:
        return 16 if self.key_scales is None else 8

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes keys and values in."""
        return self.keys.dtype if self.key_scales is None else self.key_scales.dtype

    @property
    def num_slots(self) -> int:
        return len(self.table) - 1

    @property
    def num_kv_heads(self) -> int:
        return int(self.keys.shape[1])

    @property
    def argument(self) -> ctypes.Structure:
        """What a kernel takes."""
        tensors = self.keys, self.values, self.key_scales, self.value_scales, self.table
        pointers = (0 if tensor is None else tensor.data_ptr() for tensor in tensors)
        strides = self.keys.stride(0), self.keys.stride(1), self.table.stride(0)
        return _KvPages(*pointers, *strides, self.num_kv_heads)
