"""Matrices that share their input, as one: query, key and value; gate and up. Knows no kernel.

A step then reads one large matrix instead of two or three small ones, which the card does faster. transformers' modules
still find a projection each: the first one computes all and the others hand out their parts.
"""

from __future__ import annotations

import torch
from torch import nn

from core.memory.matrix_groups import MatrixGroup

Tensors = dict[str, torch.Tensor]


class Merging:
    """The tensors of a group's members, put beside each other as they are read."""

    def __init__(self, group: MatrixGroup) -> None:
        self._group = group
        self._left = group.num_parts
        self.tensors: Tensors = {}

    def put(self, name: str, part: str, tensor: torch.Tensor) -> bool:
        """Take one member's `part`, a copy; True when that was the last one missing."""
        begin, size, whole = self._group.begins[name], self._group.sizes[name], self._group.out_features
        if part == "g_idx":
            self.tensors.setdefault(part, tensor)
        else:
            # Zeros of several columns share a word, so their columns are fewer by the same factor.
            scale = tensor.shape[-1] / size
            shape = (*tensor.shape[:-1], round(whole * scale))
            if part not in self.tensors:
                self.tensors[part] = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
            at = round(begin * scale)
            self.tensors[part][..., at : at + tensor.shape[-1]].copy_(tensor)
        self._left -= 1
        return self._left == 0


class Members:
    """The tensors of a group's members as they are read, for a kernel that puts them beside each other itself."""

    def __init__(self, group: MatrixGroup) -> None:
        self._left = group.num_parts
        self.tensors: list[Tensors] = [{} for _ in group.sizes]
        self._index = {name: index for index, name in enumerate(group.sizes)}

    def put(self, name: str, part: str, tensor: torch.Tensor) -> bool:
        """Take one member's `part`; True when that was the last one missing."""
        self.tensors[self._index[name]][part] = tensor
        self._left -= 1
        return self._left == 0


class MergedPart(nn.Module):
    """One projection of several that are one matrix. They are called in order, the first one first, as models do."""

    def __init__(self, merged: nn.Module, begin: int, end: int, first: MergedPart | None, is_last: bool) -> None:
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


def make_parts(merged: nn.Module, group: MatrixGroup) -> dict[str, MergedPart]:
    """The projections of `merged` by name."""
    parts: dict[str, MergedPart] = {}
    for name, begin in group.begins.items():
        first, end = next(iter(parts.values()), None), begin + group.sizes[name]
        parts[name] = MergedPart(merged, begin, end, first, is_last=end == group.out_features)
    return parts
