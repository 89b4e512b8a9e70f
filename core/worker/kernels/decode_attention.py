"""The kernels of cuda/rows.cu and cuda/attention.cu, and their room: norms, and attention of one new token a row.

Knows no model and no request. What comes out for a row does not depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import c_longlong
from functools import cache

import torch

from core.memory.plan import ATTENTION_PARTS
from core.memory.sizes import FLOAT_BYTES, HALF_BYTES
from core.worker.kernels.nvrtc import CudaModule
from core.worker.kernels.w4_small_batch import read_source, room_for_sums

# Sizes of a head, and how many of its queries are taken together at most: what a block has room for.
MAX_QUERIES = {64: 8, 128: 8, 256: 2}
ATTEND_WARPS = 4
# How many columns of the cache a warp takes at a time: the lines of a product on tensor cores.
COLUMNS = 16
# How many blocks share the columns of a row's head.
SHARES = (8, 4, 2, 1)
# The longest row that is normed, and by how many threads.
MAX_ROW = 32768
NORM_THREADS = 512
TURN_THREADS = 256


def queries_together(num_heads: int, num_kv_heads: int, dim: int) -> int:
    """How many queries of a key are taken together: the most that share them out evenly."""
    group = num_heads // num_kv_heads
    return max(count for count in range(1, MAX_QUERIES[dim] + 1) if group % count == 0)


def shared_bytes(dim: int, queries: int, blocks: int, ahead: int) -> int:
    """What each of `blocks` keeps in shared memory (Room in cuda/attention.cu): columns on their way, heads, sums."""
    coming = ahead * ATTEND_WARPS * COLUMNS * 2 * dim * HALF_BYTES
    heads = (queries + 2) * dim * HALF_BYTES
    parts = ATTENTION_PARTS // blocks
    sums = (ATTEND_WARPS - 1 + parts) * dim + 2 * (ATTEND_WARPS + parts)
    return coming + heads + sums * queries * FLOAT_BYTES


def choose_ahead(dim: int, queries: int, blocks: int, room_bytes: int) -> int:
    """How many times a warp's columns are on their way: as many as a block has room for in shared memory, up to 3, or 2
    where others take most of the columns."""
    fitting = (n for n in (3, 2) if shared_bytes(dim, queries, blocks, n) <= room_bytes and (n < 3 or blocks < 4))
    return next(fitting, 1)


def choose_blocks(teams: int, most_blocks: Mapping[int, int]) -> int:
    """How many blocks share the columns that each of `teams` looks at: the first whose blocks are all among the
    `most_blocks` of that kind that the GPU holds at once, else the fewest."""
    return next((blocks for blocks, most in most_blocks.items() if blocks * teams <= most), min(most_blocks))


@cache
def module_for(
    dtype: torch.dtype, dim: int, queries: int, ahead: tuple[tuple[int, int], ...], clusters: bool, device: torch.device
) -> CudaModule:
    """The kernels: one for each number of blocks that share, with how often a warp's columns are on their way."""
    lines = (f"ATTEND({blocks}, {times})" for blocks, times in ahead)
    source = read_source("hopper.cuh", "rows.cu", "attention.cu", ATTENDS=lines)
    defines = {"BF16": int(dtype == torch.bfloat16), "DIM": dim, "QUERIES": queries, "CLUSTERS": int(clusters)}
    defines |= {"ATTEND_WARPS": ATTEND_WARPS, "COLUMNS": COLUMNS, "PARTS": ATTENTION_PARTS, "MAX_ROW": MAX_ROW}
    return CudaModule(source, defines, device)


class RowKernels:
    """For one model: its heads and its number of slots. All layers share the room."""

    def __init__(
        self,
        dtype: torch.dtype,
        heads: tuple[int, int],
        dim: int,
        num_slots: int,
        device: torch.device,
        shares: Sequence[int] = SHARES,
        clusters: bool | None = None,
    ) -> None:
        """`shares`: how many blocks may share a head's columns. `clusters`: whether those read one another's shared
        memory; None: where the GPU can."""
        self.num_heads, self.num_kv_heads, self.dim = *heads, dim
        self._queries = queries_together(*heads, dim)
        properties = torch.cuda.get_device_properties(device)
        clusters = properties.major >= 9 if clusters is None else clusters
        # Two blocks on a multiprocessor; a KiB of each is CUDA's.
        room = properties.shared_memory_per_multiprocessor // 2 - 1024
        ahead = tuple((blocks, choose_ahead(dim, self._queries, blocks, room)) for blocks in shares)
        module = module_for(dtype, dim, self._queries, ahead, clusters, device)
        self._norm, self._turn = module.kernel("norm_rows"), module.kernel("turn_rows")
        self._attend = {
            blocks: module.kernel(f"attend_{blocks}", shared_bytes(dim, self._queries, blocks, times))
            for blocks, times in ahead
        }
        # Blocks that share are neighbours on the GPU: of four and more, some places stay empty.
        empty = properties.multi_processor_count // 2
        self._most_blocks = {
            blocks: kernel.most_blocks(ATTEND_WARPS * 32) - (empty if blocks > 2 else 0)
            for blocks, kernel in self._attend.items()
        }
        shape = (0,) if clusters else (num_slots, self.num_heads, ATTENTION_PARTS)
        self._parts = torch.empty((*shape, dim), dtype=torch.float32, device=device)
        self._tops = torch.empty(shape, dtype=torch.float32, device=device)
        self._totals = torch.empty(shape, dtype=torch.float32, device=device)
        self._ended = torch.zeros(num_slots * self.num_heads, dtype=torch.int32, device=device)

    def norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, run: int, places: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x [rows, size] divided by its root mean square, times `weight`; each value at its `places`. With it the sums
        in runs of `run`, as DeckKernels.sum_rows finds them."""
        out, sums = torch.empty_like(x), room_for_sums(x, run)
        self._norm((x.shape[0], 1, 1), NORM_THREADS, x, weight, out, places, x.stride(0), x.shape[1], eps, sums,
                   sums.stride(0), run)  # fmt: skip
        return out, sums

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
        blocks = choose_blocks(teams * rows, self._most_blocks)
        self._attend[blocks](
            (blocks, teams, rows), ATTEND_WARPS * 32, qkv, cos, sin, keys, values, slots, columns, self._parts,
            self._tops, self._totals, self._ended, out, places, c_longlong(keys.stride(0)), c_longlong(keys.stride(1)),
            cos.stride(0) if cos.shape[0] > 1 else 0, float(scale), window, self.num_heads, self.num_kv_heads,
        )  # fmt: skip
        return out

    def turn(
        self,
        qkv: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        cache: tuple[torch.Tensor, torch.Tensor],
        slots: torch.Tensor,
        columns: torch.Tensor,
    ) -> torch.Tensor:
        """qkv [tokens, (heads + 2 kv heads) * dim] of new tokens of one chat -> its queries [1, heads, tokens, dim],
        turned where they lie.

        Angles are [1, tokens, dim]; keys, turned, and values go into `cache` as in `attend`, at `columns` [1, tokens].
        """
        tokens, (cos, sin), (keys, values) = qkv.shape[0], angles, cache
        heads = self.num_heads + 2 * self.num_kv_heads
        # A thread takes 8 places of a query's or key's half, with those of the other, or 8 of a value.
        threads = tokens * (heads * self.dim // 16 + self.num_kv_heads * self.dim // 16)
        self._turn(
            (-(-threads // TURN_THREADS), 1, 1), TURN_THREADS, qkv, cos, sin, keys, values, slots, columns,
            c_longlong(keys.stride(0)), c_longlong(keys.stride(1)), cos.stride(1), tokens, self.num_heads,
            self.num_kv_heads,
        )  # fmt: skip
        queries = qkv.view(tokens, heads, self.dim)[:, : self.num_heads]
        return queries.transpose(0, 1).unsqueeze(0)
