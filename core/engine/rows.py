"""The kernels of cuda/rows.cu, and the room that they share: norms, and attention of one new token a row.

Knows no model and no request. What comes out for a row does not depend on the other rows.
"""

from __future__ import annotations

from ctypes import c_longlong
from functools import cache

import torch

from core.engine.deck import NUM_THREADS, read_source
from core.engine.nvrtc import CudaModule
from core.engine.plan import ATTENTION_SEGMENT

# Sizes of a head that a block's threads share out evenly, and how many queries of one key a block takes at most.
DIMS = (64, 128, 256)
MAX_QUERIES = 4
MAX_ODD_QUERIES = 7
# The longest row that is normed, and by how many threads.
MAX_ROW = 32768
NORM_THREADS = 512


def queries_together(num_heads: int, num_kv_heads: int) -> int:
    """How many queries of a key a block takes: all of up to 4, else the most that share them out evenly."""
    group = num_heads // num_kv_heads
    even = max(count for count in range(1, MAX_QUERIES + 1) if group % count == 0)
    return group if even == 1 and group <= MAX_ODD_QUERIES else even


@cache
def module_for(dtype: torch.dtype, dim: int, queries: int, device: torch.device) -> CudaModule:
    defines = {"BF16": int(dtype == torch.bfloat16), "DIM": dim, "QUERIES": queries, "SEGMENT": ATTENTION_SEGMENT}
    defines["MAX_ROW"] = MAX_ROW
    return CudaModule(read_source("rows.cu"), defines, device)


class RowKernels:
    """For one model: its heads, its cache's length and its number of slots. All layers share the room."""

    def __init__(
        self,
        dtype: torch.dtype,
        heads: tuple[int, int],
        dim: int,
        context_tokens: int,
        num_slots: int,
        device: torch.device,
    ) -> None:
        self.num_heads, self.num_kv_heads, self.dim = *heads, dim
        self._queries = queries_together(*heads)
        module = module_for(dtype, dim, self._queries, device)
        self._norm, self._attend = module.kernel("norm_rows"), module.kernel("attend")
        self._segments = context_tokens // ATTENTION_SEGMENT + 1
        shape = (num_slots, self.num_heads, self._segments)
        self._parts = torch.empty((*shape, dim), dtype=torch.float32, device=device)
        self._tops = torch.empty(shape, dtype=torch.float32, device=device)
        self._totals = torch.empty(shape, dtype=torch.float32, device=device)
        self._ended = torch.zeros(num_slots * self.num_heads, dtype=torch.int32, device=device)
        self._num_blocks = 2 * torch.cuda.get_device_properties(device).multi_processor_count

    def norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, places: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x [rows, size] divided by its root mean square, times `weight`; each value at its `places`."""
        out = torch.empty_like(x)
        self._norm((x.shape[0], 1, 1), NORM_THREADS, x, weight, out, places, x.stride(0), x.shape[1], eps)
        return out

    def attend(
        self,
        qkv: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        cache: tuple[torch.Tensor, torch.Tensor],
        slots: torch.Tensor,
        columns: torch.Tensor,
        scale: float,
        window: int,
        places: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """qkv [rows, (heads + 2 kv heads) * dim] of one new token a row -> [rows, heads * dim].

        Query and key are turned by `angles`, cosines and sines [rows or 1, 1, dim]; key and value go into `cache`, a
        layer's keys and values [slots, kv heads, columns, dim], at each row's slot and column. A column below 0: none.
        """
        rows, (cos, sin), (keys, values) = qkv.shape[0], angles, cache
        out = torch.empty((rows, self.num_heads * self.dim), dtype=qkv.dtype, device=qkv.device)
        teams = self.num_heads // self._queries
        blocks = min(self._segments, max(1, -(-self._num_blocks // (teams * rows))))
        self._attend(
            (blocks, teams, rows), NUM_THREADS, qkv, cos, sin, keys, values, slots, columns, self._parts, self._tops,
            self._totals, self._ended, out, places, c_longlong(keys.stride(0)), c_longlong(keys.stride(1)),
            cos.stride(0) if cos.shape[0] > 1 else 0, float(scale), window, self.num_heads, self.num_kv_heads,
            self._segments,
        )  # fmt: skip
        return out
