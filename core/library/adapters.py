"""The LoRA adapters on disk that a model can have, and how much room for them a load begins with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.checkpoint.adapter_folders import list_adapters
from core.checkpoint.adapters import MAX_RANK, AdapterShape, is_other_base, read_adapter
from core.checkpoint.checkpoint import Checkpoint
from core.common.errors import DeckError
from core.library.last_model import last_load
from core.memory.adapter_room import NO_ROOM, AdapterRoom, match_adapter

# At once, where nobody chose a number. Each takes memory and some time of every token.
USUAL_ADAPTERS = 4
# Ranks are told in these steps, so that a slightly higher one needs no new load.
RANK_STEP = 8


@dataclass(frozen=True, slots=True)
class FoundAdapter:
    """One folder. `error`: why the model cannot have it. `is_of_other_base`: it names another base, which may still be
    the same model."""

    folder: Path
    shape: AdapterShape | None
    error: DeckError | None = None
    is_of_other_base: bool = False

    @property
    def name(self) -> str:
        return self.folder.name


def find_adapters(checkpoint: Checkpoint) -> list[FoundAdapter]:
    """All adapters in adapters/ and in the model's own folder, with what is wrong with each for this model."""
    found = []
    for folder in list_adapters(checkpoint.path):
        try:
            shape = read_adapter(folder)
            match_adapter(shape, checkpoint)
        except DeckError as error:
            found.append(FoundAdapter(folder, None, error))
            continue
        base = str(checkpoint.config.get("_name_or_path") or "")
        found.append(FoundAdapter(folder, shape, None, is_other_base(shape, (checkpoint.name, base))))
    return found


def room_to_load(
    checkpoint: Checkpoint, find: Callable[[Checkpoint], list[FoundAdapter]] = find_adapters
) -> AdapterRoom:
    """What a load without a choice begins with: as the last time, else room for the adapters that there are."""
    last = last_load(checkpoint.name)
    return usual_room(find(checkpoint)) if last is None else last.adapters


def usual_room(found: list[FoundAdapter]) -> AdapterRoom:
    """Room for the adapters that the model can have, up to USUAL_ADAPTERS at once."""
    ranks = [one.shape.rank for one in found if one.shape is not None]
    if not ranks:
        return NO_ROOM
    return AdapterRoom(min(len(ranks), USUAL_ADAPTERS), min(MAX_RANK, math.ceil(max(ranks) / RANK_STEP) * RANK_STEP))
