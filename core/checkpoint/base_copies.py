"""What an adapter's file holds of its base: PEFT saves the head that it changes also as it was before the training."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from core.checkpoint.headers import TensorInfo
from core.common.errors import CheckpointError
from core.common.values import printable

# PEFT calls a module "base_layer" inside the one that it puts around it.
COPY = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.base_layer\.(?P<part>weight|bias)$")
LAYER_NUMBER = re.compile(r"\.[0-9]+\.")


@dataclass(frozen=True, slots=True)
class BaseCopy:
    """A tensor of the base as the training had it: "weight" or "bias" of a module. `name` is that in the adapter's
    file."""

    name: str
    module: str
    part: str
    shape: tuple[int, ...]


def split_copies(tensors: Mapping[str, TensorInfo]) -> tuple[list[BaseCopy], dict[str, TensorInfo]]:
    """The copies in an adapter's file, and all its other tensors."""
    found = {name: COPY.match(name) for name in tensors}
    copies = [
        BaseCopy(name, match["module"], match["part"], tensors[name].shape) for name, match in found.items() if match
    ]
    return copies, {name: tensor for name, tensor in tensors.items() if found[name] is None}


def require_of_head(adapter: str, copies: list[BaseCopy], changed: Collection[str]) -> None:
    """Raise CheckpointError for a copy of what is not among the `changed` modules, or lies in a layer, or is there
    twice: PEFT saves none of those."""
    seen: set[tuple[str, str]] = set()
    for copy in copies:
        place = copy.module, copy.part
        if copy.module not in changed or LAYER_NUMBER.search(copy.module) or place in seen:
            raise CheckpointError("adapter_tensor", adapter=adapter, tensor=printable(copy.name))
        seen.add(place)
