"""How a product wants the rows that it multiplies, so that what makes them lays them out so."""

from __future__ import annotations

from typing import NamedTuple

import torch


class RowLayout(NamedTuple):
    """inverse_permutation int32 [inputs]: where each input lies; None: in order. tile_rows: of the tiles in which wgmma
    takes rows (input_offset in cuda/common.cuh); 0: rows lie one after the other."""

    inverse_permutation: torch.Tensor | None = None
    tile_rows: int = 0

    def empty(self, rows: int, inputs: int, like: torch.Tensor) -> torch.Tensor:
        """Room for `rows`, of whole tiles, [rows, inputs]."""
        rows = -(-rows // self.tile_rows) * self.tile_rows if self.tile_rows else rows
        return torch.empty((rows, inputs), dtype=like.dtype, device=like.device)


IN_ORDER = RowLayout()
