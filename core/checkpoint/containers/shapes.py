"""What containers have in common: names of tensors, group sizes by the shapes of scales, settings of single modules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from core.checkpoint.headers import TensorInfo
from core.checkpoint.layers import contradiction
from core.checkpoint.quantization import Part, QuantizedMatrix
from core.common.errors import CheckpointError
from core.common.values import is_whole, quoted_json

# Of a matrix whose last group is shorter than the others, the size that quantizers have.
USUAL_GROUP_SIZES = (16, 32, 48, 64, 96, 128, 192, 256, 512, 1024)


def matrix_names(ending: str, tensors: Mapping[str, TensorInfo]) -> list[str]:
    """The modules whose codes' names have this `ending`, in the order of `tensors`."""
    return [name.removesuffix(ending) for name in tensors if name.endswith(ending)]


def parts_of(model: str, name: str, endings: Mapping[Part, str], tensors: Mapping[str, TensorInfo]) -> dict[Part, str]:
    """The names of the tensors that the matrix `name` has. Raises CheckpointError where its codes are no matrix."""
    parts = {part: name + ending for part, ending in endings.items() if name + ending in tensors}
    shape = tensors[parts["codes"]].shape
    if len(shape) != 2:
        raise CheckpointError("no_matrix", folder=model, name=parts["codes"], shape=str(list(shape)))
    return parts


def stated_group_size(model: str, value: object) -> int:
    """The group size that a configuration says. Raises CheckpointError for what is none."""
    if not is_whole(value) or not (value == -1 or value > 0):
        raise CheckpointError("group_size", folder=model, group_size=quoted_json(value))
    return value


def settings_of(found: object) -> list[Mapping[str, Any]]:
    """What a configuration says of single modules: by name or pattern, settings that differ from the model's."""
    return [one for one in found.values() if isinstance(one, dict)] if isinstance(found, dict) else []


def group_size_of(stated: int, in_features: int, scales: tuple[int, ...] | None) -> int:
    """The inputs that share a scale, of a matrix with `scales` [groups, out]; what is `stated` where that fits."""
    groups = scales[0] if scales else 0
    if not groups or not in_features:
        return stated
    if groups == (1 if stated < 0 else math.ceil(in_features / stated)):
        return stated
    if groups == 1:
        return -1
    if in_features % groups == 0:
        return in_features // groups
    return next((size for size in USUAL_GROUP_SIZES if math.ceil(in_features / size) == groups), stated)


def refuse_contradiction(
    model: str,
    matrix: QuantizedMatrix,
    part: Part,
    shape: tuple[int, ...],
    name: str,
    value: int,
    tensors: Mapping[str, TensorInfo],
) -> None:
    """Raise CheckpointError where a tensor of `matrix` has another `shape` than the setting `name` makes it."""
    stored = matrix.tensors.get(part)
    if stored is not None and tensors[stored].shape != shape:
        raise contradiction(model, name, value, stored, tensors[stored])
