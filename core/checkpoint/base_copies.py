"""What an adapter's file holds of its base: PEFT saves the head that it changes also as it was before the training, and
with save_embedding_layers the embedding and the head, changed or not."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from core.checkpoint.headers import TensorInfo
from core.checkpoint.tied_head import EMBEDDINGS, HEADS
from core.common.errors import CheckpointError
from core.common.values import printable

# PEFT calls a module "base_layer" inside the one that it puts around it.
COPY = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.base_layer\.(?P<part>weight|bias)$")
# An embedding or a head around which PEFT puts nothing.
PLAIN_COPY = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.(?P<part>weight|bias)$")
LAYER_NUMBER = re.compile(r"\.[0-9]+\.")


@dataclass(frozen=True, slots=True)
class BaseCopy:
    """A tensor of the base as the training had it: "weight" or "bias" of a module. `name` is that in the adapter's
    file."""

    name: str
    module: str
    part: str
    tensor: TensorInfo

    @property
    def own_name(self) -> str:
        """What the training's model called it."""
        return f"{self.module}.{self.part}"

    @property
    def is_head(self) -> bool:
        return _is_of(self.module, HEADS)

    @property
    def is_embedding(self) -> bool:
        return _is_of(self.module, EMBEDDINGS)


def read_copy(name: str, tensor: TensorInfo) -> BaseCopy | None:
    """The copy that the tensor `name` of an adapter's file is; None for all else."""
    if (match := COPY.match(name)) is None:
        match = PLAIN_COPY.match(name)
        if match is None or not _is_of(match["module"], (*HEADS, *EMBEDDINGS)):
            return None
    return BaseCopy(name, match["module"], match["part"], tensor)


def split_copies(tensors: Mapping[str, TensorInfo]) -> tuple[list[BaseCopy], dict[str, TensorInfo]]:
    """The copies in an adapter's file, and all its other tensors."""
    copies = [copy for name, tensor in tensors.items() if (copy := read_copy(name, tensor)) is not None]
    names = {copy.name for copy in copies}
    return copies, {name: tensor for name, tensor in tensors.items() if name not in names}


def require_outside(adapter: str, copies: list[BaseCopy], changed: Collection[str]) -> None:
    """Raise CheckpointError for a copy of what is neither embedding nor head nor among the `changed` modules, or lies
    in a layer, or is there twice: PEFT saves none of those."""
    seen: set[str] = set()
    for copy in copies:
        is_known = copy.module in changed or copy.is_head or copy.is_embedding
        if not is_known or LAYER_NUMBER.search(copy.module) or copy.own_name in seen:
            raise CheckpointError("adapter_tensor", adapter=adapter, tensor=printable(copy.name))
        seen.add(copy.own_name)


def _is_of(module: str, endings: tuple[str, ...]) -> bool:
    """Whether the module has the name of one of the tensors `endings`."""
    return f"{module.rpartition('.')[2]}.weight" in endings
