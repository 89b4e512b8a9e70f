"""Room for LoRA adapters beside a loaded model, decided before the load: how many at once, up to which rank."""

from __future__ import annotations

import re
from dataclasses import dataclass

from core.checkpoint.adapters import MAX_RANK, AdapterShape, LowRank, match_base
from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.experts import expert_matrix
from core.checkpoint.layers import LAYER
from core.common.errors import CheckpointError, InputError
from core.common.values import is_whole
from core.memory.sizes import HALF_BYTES, round_to_block

MAX_ADAPTERS = 16
# What a module's name has from its layer's number on: the beginnings differ from release to release.
NUMBERED = re.compile(r"\.[0-9]+\..*$")


@dataclass(frozen=True, slots=True)
class AdapterRoom:
    """`count` adapters at once, each of a rank up to `rank`; a rank without any means that none were chosen.

    Raises InputError for numbers that cannot be.
    """

    count: int = 0
    rank: int = 0

    def __post_init__(self) -> None:
        if not is_whole(self.count) or not 0 <= self.count <= MAX_ADAPTERS:
            raise InputError("setting_whole", name="adapters", value=str(self.count), low=0, high=MAX_ADAPTERS)
        if self.count and (not is_whole(self.rank) or not 1 <= self.rank <= MAX_RANK):
            raise InputError("setting_whole", name="adapter_rank", value=str(self.rank), low=1, high=MAX_RANK)

    @property
    def is_chosen(self) -> bool:
        """Whether somebody chose the number: while there is no adapter, nobody is asked."""
        return self.rank > 0

    @property
    def columns(self) -> int:
        """The ranks of all adapters together: their matrices lie side by side."""
        return self.count * self.rank


NO_ROOM = AdapterRoom()


def adaptable_matrices(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """The (in, out) features of each matrix that an adapter can change at run time: the quantized ones of the layers,
    without single experts."""
    if AdapterRoom not in checkpoint.derived:
        checkpoint.derived[AdapterRoom] = {
            name: (matrix.in_features, matrix.out_features)
            for name, matrix in checkpoint.matrices.items()
            if LAYER.match(f"{name}.") and expert_matrix(name) is None
        }
    sizes: dict[str, tuple[int, int]] = checkpoint.derived[AdapterRoom]
    return sizes


def match_adapter(adapter: AdapterShape, checkpoint: Checkpoint) -> dict[str, LowRank]:
    """What `adapter` adds to each matrix of the loaded model, by its names.

    Raises CheckpointError where it was trained on another model, or changes what cannot be changed at run time.
    """
    try:
        return match_base(adapter, checkpoint.name, adaptable_matrices(checkpoint))
    except CheckpointError as error:
        if error.key == "adapter_base_matrix":
            module = str(error.params["module"])
            tail = module[match.start() :] if (match := NUMBERED.search(module)) else f".{module.rpartition('.')[2]}"
            owners = {name.rpartition(".")[0] for name in checkpoint.tensors}
            if any(f".{owner}".endswith(tail) for owner in owners):
                raise CheckpointError(
                    "adapter_plain_matrix", adapter=adapter.name, base=checkpoint.name, module=module
                ) from error
        raise


def room_bytes(checkpoint: Checkpoint, room: AdapterRoom) -> int:
    """A [columns, in] and B [out, columns] beside each matrix, in half precision."""
    sizes = adaptable_matrices(checkpoint).values() if room.count else ()
    return sum(
        round_to_block(room.columns * inputs * HALF_BYTES) + round_to_block(room.columns * outputs * HALF_BYTES)
        for inputs, outputs in sizes
    )
