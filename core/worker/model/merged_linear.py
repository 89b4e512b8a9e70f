"""Matrices that share their input, as one: query, key and value; gate and up.

A step then reads one large matrix instead of two or three small ones, which a GPU does faster. transformers' modules
still find a projection each: the first one computes all and the others hand out their parts.
"""

from __future__ import annotations

import torch
from torch import nn

from core.memory.matrix_groups import MatrixGroup


class MergedLinearSlice(nn.Module):
    """One projection of several that are one matrix. They are called in order, the first one first, as models do."""

    def __init__(self, merged: nn.Module, begin: int, end: int, first: MergedLinearSlice | None, is_last: bool) -> None:
        super().__init__()
        self.begin, self.end, self.is_last = begin, end, is_last
        self.output: torch.Tensor | None = None
        # Not registered as modules: the matrix belongs to the first part alone.
        object.__setattr__(self, "merged", merged)
        object.__setattr__(self, "first", first)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> this part of [..., all outs]."""
        first = self.first or self
        if first is self:
            self.output = self.merged(x)
        output = first.output
        assert output is not None
        if self.is_last:
            first.output = None
        return output[..., self.begin : self.end]


def make_slices(merged: nn.Module, group: MatrixGroup) -> dict[str, MergedLinearSlice]:
    """The projections of `merged` by name."""
    parts: dict[str, MergedLinearSlice] = {}
    for name, begin in group.begins.items():
        first, end = next(iter(parts.values()), None), begin + group.sizes[name]
        parts[name] = MergedLinearSlice(merged, begin, end, first, is_last=end == group.out_features)
    return parts
