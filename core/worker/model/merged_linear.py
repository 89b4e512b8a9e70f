"""Matrices that share their input, as one: query, key and value; gate and up.

A step then reads one large matrix instead of two or three small ones, which a GPU does faster. transformers' modules
still find a projection each: the one that is called first computes all and the others hand out their parts.
"""

from __future__ import annotations

import torch
from torch import nn

from core.memory.matrix_groups import MatrixGroup


class MergedLinearSlice(nn.Module):
    """One projection of `count` that are one matrix. A model calls each of them once with the same input."""

    def __init__(self, merged: nn.Module, begin: int, end: int, first: MergedLinearSlice | None, count: int) -> None:
        super().__init__()
        self.begin, self.end, self.count = begin, end, count
        # Of the first part: what was computed for all, and where the parts begin that were handed out since.
        self.output: torch.Tensor | None = None
        self.handed_out: set[int] = set()
        # Not registered as modules: the matrix belongs to the first part alone.
        object.__setattr__(self, "merged", merged)
        object.__setattr__(self, "first", first)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> this part of [..., all outs]."""
        first = self.first or self
        output = first.output
        if output is None or self.begin in first.handed_out:
            output = first.output = self.merged(x)
            first.handed_out.clear()
        first.handed_out.add(self.begin)
        if len(first.handed_out) == self.count:
            first.output = None
            first.handed_out.clear()
        return output[..., self.begin : self.end]


def make_slices(merged: nn.Module, group: MatrixGroup) -> dict[str, MergedLinearSlice]:
    """The projections of `merged` by name."""
    parts: dict[str, MergedLinearSlice] = {}
    for name, begin in group.begins.items():
        first, end = next(iter(parts.values()), None), begin + group.sizes[name]
        parts[name] = MergedLinearSlice(merged, begin, end, first, len(group.sizes))
    return parts
