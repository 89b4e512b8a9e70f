"""The LoRA adapters on disk that a model can have, and how much room for them a load begins with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from core.checkpoint.adapter_folders import list_adapters
from core.checkpoint.adapters import (
    MAX_RANK,
    AdapterShape,
    is_other_base,
    read_adapter,
    read_sound_adapter,
    require_numbers,
)
from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.common.errors import CheckpointError, DeckError
from core.library.fingerprint import Fingerprint, fingerprint
from core.library.last_model import last_load
from core.memory.adapter_room import NO_ROOM, AdapterRoom, match_adapter

# At once, where nobody chose a number. Each takes memory and some time of every token.
USUAL_ADAPTERS = 4
# Ranks are told in these steps, so that a slightly higher one needs no new load.
RANK_STEP = 8
# Why a model cannot have an adapter that was trained on it.
OWN_FAULTS = (
    "adapter_plain_matrix", "adapter_router", "adapter_outside", "adapter_tied_head", "adapter_nan", "adapter_merged",
    "adapter_own_layer", "adapter_resized", "adapter_copy_unknown",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FoundAdapter:
    """One folder. `error`: why the model, or none of those here, can have it. `is_of_other_base`: it names another
    base, which may still be the same model. `models`: which of those here can have it, where it was read for all."""

    folder: Path
    shape: AdapterShape | None
    error: DeckError | None = None
    is_of_other_base: bool = False
    models: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def is_of_model(self) -> bool:
        """Whether it was trained on the model for which it was read, of use or not."""
        return self.error is None or self.error.key in OWN_FAULTS


def find_adapters(checkpoint: Checkpoint) -> list[FoundAdapter]:
    """All adapters in adapters/ and in the model's own folder, with what is wrong with each for this model."""
    found = []
    for folder in list_adapters(checkpoint.path):
        try:
            shape = read_fitting(folder, checkpoint)
        except DeckError as error:
            found.append(FoundAdapter(folder, None, error))
            continue
        found.append(FoundAdapter(folder, shape, None, _names_other_base(shape, checkpoint)))
    return found


def read_alone(folder: Path) -> FoundAdapter:
    """One adapter by itself, whatever model it is for."""
    try:
        return FoundAdapter(folder, read_sound_adapter(folder))
    except DeckError as error:
        return FoundAdapter(folder, None, error)


def read_for_all(folder: Path, models: Sequence[Checkpoint]) -> FoundAdapter:
    """One adapter and which of `models` can have it: those of its own base, or else those with the same shapes. Where
    none can, `error` says why."""
    found = read_alone(folder)
    if found.shape is None:
        return found
    own, others, refusals = _sorted_by_base(found.shape, models)
    error = None if own or others else _why_none(found.shape, refusals)
    return replace(found, models=tuple(own or others), is_of_other_base=bool(others) and not own, error=error)


def find_bases(adapter: AdapterShape, models: Iterable[Checkpoint]) -> tuple[list[str], list[str]]:
    """The names of the models that can have the adapter: of its own base, and of another one with the same shapes."""
    own, others, _ = _sorted_by_base(adapter, models)
    return own, others


def _sorted_by_base(
    adapter: AdapterShape, models: Iterable[Checkpoint]
) -> tuple[list[str], list[str], list[DeckError]]:
    """The names of the models that can have the adapter, as `find_bases`, and why each other one cannot."""
    own: list[str] = []
    others: list[str] = []
    refusals: list[DeckError] = []
    for checkpoint in models:
        try:
            match_adapter(adapter, checkpoint)
        except DeckError as error:
            refusals.append(error)
            continue
        (others if _names_other_base(adapter, checkpoint) else own).append(checkpoint.name)
    return own, others, refusals


def _why_none(adapter: AdapterShape, refusals: Iterable[DeckError]) -> DeckError:
    """What a model says on which the adapter was trained; else that there is none."""
    if (told := next((error for error in refusals if error.key in OWN_FAULTS), None)) is not None:
        return told
    if adapter.base_name:
        return CheckpointError("adapter_no_base", adapter=adapter.name, base=adapter.base_name)
    return CheckpointError("adapter_no_base_unnamed", adapter=adapter.name)


def _names_other_base(adapter: AdapterShape, checkpoint: Checkpoint) -> bool:
    return is_other_base(adapter, (checkpoint.name, str(checkpoint.config.get("_name_or_path") or "")))


def read_fitting(folder: Path, checkpoint: Checkpoint) -> AdapterShape:
    """The adapter in `folder`. Raises CheckpointError for one that the model cannot have."""
    shape = read_adapter(folder)
    match_adapter(shape, checkpoint)
    # Last: that of another model need not be read for this one.
    require_numbers(shape)
    return shape


def fitting_adapters(model: Path) -> list[Path]:
    """The folders of those that are sound and made for the shapes of the model in `model`. Files that did not change
    are read once."""
    return [folder for folder, _ in _fitting(model)]


def answering_adapters(model: Path, room: AdapterRoom) -> list[Path]:
    """Of `fitting_adapters` those that a load with `room` can have."""
    return adapters_by_room(model, room)[0]


def adapters_by_room(model: Path, room: AdapterRoom) -> tuple[list[Path], list[AdapterShape]]:
    """Of `fitting_adapters` those that a load with `room` can have, and those that it cannot."""
    answering, lacking = list[Path](), list[AdapterShape]()
    for folder, shape in _fitting(model):
        if room.holds(shape.rank, shape.changes_experts):
            answering.append(folder)
        else:
            lacking.append(shape)
    return answering, lacking


def _fitting(model: Path) -> list[tuple[Path, AdapterShape]]:
    mark = fingerprint(model)
    shapes = ((one, _shape_for(one, fingerprint(one), model, mark)) for one in list_adapters(model))
    return [(folder, shape) for folder, shape in shapes if shape is not None]


@lru_cache(1024)
def _shape_for(adapter: Path, mark: Fingerprint, model: Path, model_mark: Fingerprint) -> AdapterShape | None:
    """None for one that the model cannot have. The marks only say that nothing has changed since."""
    checkpoint = _read(model, model_mark)
    try:
        return read_sound_adapter(adapter) if checkpoint is None else read_fitting(adapter, checkpoint)
    except DeckError:
        return None


@lru_cache(2)
def _read(model: Path, mark: Fingerprint) -> Checkpoint | None:
    """None where it cannot be read, such as a loaded model whose folder was taken away."""
    try:
        return read_checkpoint(model)
    except DeckError:
        return None


def room_to_load(
    checkpoint: Checkpoint, find: Callable[[Checkpoint], list[FoundAdapter]] = find_adapters
) -> AdapterRoom:
    """What a load without a choice begins with: what was chosen the last time, else room for the adapters that there
    are."""
    last = last_load(checkpoint.name)
    return last.adapters if last is not None and last.adapters.is_chosen else usual_room(find(checkpoint))


def room_for_adapter(checkpoint: Checkpoint) -> AdapterRoom:
    """The same where an adapter is asked for, which may have come after the last load."""
    room = room_to_load(checkpoint)
    return room if room.count else usual_room(find_adapters(checkpoint))


def usual_room(found: list[FoundAdapter]) -> AdapterRoom:
    """Room for the adapters that the model can have, up to USUAL_ADAPTERS at once."""
    ranks = [one.shape.rank for one in found if one.shape is not None]
    if not ranks:
        return NO_ROOM
    return AdapterRoom(min(len(ranks), USUAL_ADAPTERS), min(MAX_RANK, math.ceil(max(ranks) / RANK_STEP) * RANK_STEP))
