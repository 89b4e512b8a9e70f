"""Matrices that share their input and are kept as one: query, key and value; gate and up; a recurrent layer's."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from core.checkpoint.checkpoint import Checkpoint

# What a model multiplies the same input with, in the order in which it calls them.
MERGED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("in_proj_qkv", "in_proj_z"))


@dataclass(frozen=True, slots=True)
class MatrixGroup:
    """Matrices that share their input and are kept as one: where each one's outputs begin, and how many it has.

    `num_parts` counts all tensors that all members are made of.
    """

    begins: dict[str, int]
    sizes: dict[str, int]
    num_parts: int

    @property
    def out_features(self) -> int:
        return sum(self.sizes.values())


def merged_matrices(checkpoint: Checkpoint, permuted: bool = False) -> list[MatrixGroup]:
    """The groups of matrices that the engine keeps as one: query, key and value; gate and up.

    Their members are quantized alike and have their inputs in one order; that of the model, unless `permuted`.
    """
    groups = []
    for name in checkpoint.matrices:
        owner, _, last = name.rpartition(".")
        for members in MERGED:
            if last == members[0]:
                groups.append(_group(checkpoint, [f"{owner}.{member}" for member in members], permuted))
    return [group for group in groups if group is not None]


def _group(checkpoint: Checkpoint, names: list[str], permuted: bool) -> MatrixGroup | None:
    """The members `names` as a group; None where one is missing or is made in another way."""
    found = [checkpoint.matrices[name] for name in names if name in checkpoint.matrices]
    kinds = {(matrix.in_features, matrix.format, frozenset(matrix.tensors), matrix.input_order) for matrix in found}
    if len(found) != len(names) or len(kinds) != 1 or any(matrix.out_features % 64 for matrix in found):
        return None
    if found[0].input_order and not permuted:
        return None
    sizes = {matrix.name: matrix.out_features for matrix in found}
    begins = dict(zip(names, itertools.accumulate(sizes.values(), initial=0), strict=False))
    return MatrixGroup(begins, sizes, sum(matrix.num_parts for matrix in found))
