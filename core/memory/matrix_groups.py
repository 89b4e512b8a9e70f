"""Matrices that share their input and are kept as one: query, key and value; gate and up."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from core.checkpoint.checkpoint import Checkpoint

PARTS = ("qweight", "qzeros", "scales", "g_idx", "bias")
# What a model multiplies the same input with, in the order in which it calls them.
MERGED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(frozen=True, slots=True)
class MatrixGroup:
    """Matrices that share their input and are kept as one: where each one's columns begin, and how many it has.

    `num_parts` counts all tensors of all members.
    """

    begins: dict[str, int]
    sizes: dict[str, int]
    num_parts: int

    @property
    def columns(self) -> int:
        return sum(self.sizes.values())


def merged_matrices(checkpoint: Checkpoint) -> list[MatrixGroup]:
    """The groups of matrices that the engine keeps as one: query, key and value; gate and up.

    Not in act-order: there each matrix may have its inputs in an order of its own, which only its tensors tell.
    """
    return [] if checkpoint.quantization.is_permuted else mergeable_matrices(checkpoint)


def mergeable_matrices(checkpoint: Checkpoint) -> list[MatrixGroup]:
    """The groups of matrices that are alike but, perhaps, for the order of their inputs."""
    groups = []
    for name in checkpoint.tensors:
        owner, _, last = name.removesuffix(".qweight").rpartition(".")
        for members in MERGED:
            if name.endswith(".qweight") and last == members[0]:
                groups.append(_group(checkpoint, [f"{owner}.{member}" for member in members]))
    return [group for group in groups if group is not None]


def _group(checkpoint: Checkpoint, names: list[str]) -> MatrixGroup | None:
    """The members `names` as a group; None where one is missing or is made in another way."""
    found = [checkpoint.tensors.get(f"{name}.qweight") for name in names]
    shapes = [tensor.shape for tensor in found if tensor is not None and len(tensor.shape) == 2]
    parts = [{part for part in PARTS if f"{name}.{part}" in checkpoint.tensors} for name in names]
    is_alike = len(shapes) == len(names) and len({shape[0] for shape in shapes}) == 1
    if not is_alike or any(part != parts[0] for part in parts) or any(shape[1] % 64 for shape in shapes):
        return None
    sizes = {name: shape[1] for name, shape in zip(names, shapes, strict=True)}
    begins = dict(zip(names, itertools.accumulate(sizes.values(), initial=0), strict=False))
    return MatrixGroup(begins, sizes, sum(map(len, parts)))
