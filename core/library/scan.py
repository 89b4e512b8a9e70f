"""The models that are on disk, one folder each; knows not whether they fit a GPU or are loaded."""

from __future__ import annotations

import difflib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from core.checkpoint.checkpoint import Checkpoint, is_plain_name, read_checkpoint
from core.checkpoint.headers import unreadable
from core.common.errors import CheckpointError, DeckError, InputError
from core.common.paths import models_dir
from core.common.values import printable
from core.hub.record import Record, read_record


@dataclass(frozen=True, slots=True)
class LibraryEntry:
    """One folder under models/: a checkpoint, or the reason why it is none."""

    name: str
    checkpoint: Checkpoint | None
    error: DeckError | None


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """A model's folder beside its checkpoint. `record` is None for one that was not downloaded by this program."""

    size_bytes: int
    is_link: bool
    record: Record | None


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """In bytes: all of models/, unfinished downloads too, and the disk that it is on."""

    models_bytes: int
    free_bytes: int
    total_bytes: int


def scan(folder: Path | None = None) -> list[LibraryEntry]:
    """Every model folder, by name. A folder that cannot be loaded is an entry that says why.

    Raises CheckpointError where the folder with the models cannot be read itself.
    """
    base = folder or models_dir()
    try:
        names = sorted((path.name for path in base.iterdir() if is_model_folder(path)), key=str.casefold)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(base, error) from error
    return [read_entry(base / name) for name in names]


def read_entry(folder: Path) -> LibraryEntry:
    try:
        return LibraryEntry(folder.name, read_checkpoint(folder), None)
    except CheckpointError as error:
        return LibraryEntry(printable(folder.name), None, error)


def is_model_folder(path: Path) -> bool:
    """Folders whose names begin with a dot are unfinished work, not models."""
    return path.is_dir() and not path.name.startswith(".")


def find(name: str) -> Checkpoint:
    """The checkpoint called `name`. Raises InputError for an unknown one, CheckpointError for a broken one."""
    return read_checkpoint(folder_of(name))


def folder_of(name: str) -> Path:
    """The folder under models/ that is called `name`, also of a model that cannot be loaded. Raises InputError."""
    names = [entry.name for entry in scan()]
    if name not in names or not is_plain_name(name):
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names[:3]
        if not near:
            raise InputError("unknown_model_of_none", name=printable(name))
        raise InputError("unknown_model", name=printable(name), near=", ".join(near))
    return models_dir() / name


def facts(folder: Path) -> FolderFacts:
    """What a model's folder takes and where it came from. Raises CheckpointError where it cannot be read."""
    return FolderFacts(size_bytes(folder), folder.is_symlink(), read_record(folder))


def size_bytes(folder: Path) -> int:
    """The bytes of all files below `folder`, a link to it included; links inside of it count nothing."""
    try:
        total = 0
        for path, _, names in os.walk(folder.resolve(), onerror=_raise):
            total += sum(_lstat_size(os.path.join(path, name)) for name in names)
        return total
    except OSError as error:
        raise unreadable(folder, error) from error


def disk_usage() -> DiskUsage:
    """How full the disk with models/ is. Raises CheckpointError where it cannot be read."""
    base = models_dir()
    place = next(path for path in (base, *base.resolve().parents) if path.exists())
    try:
        usage = shutil.disk_usage(place)
    except OSError as error:
        raise unreadable(place, error) from error
    return DiskUsage(size_bytes(base) if base.exists() else 0, usage.free, usage.total)


def _raise(error: OSError) -> None:
    # A folder can go while it is looked at, when a download ends.
    if not isinstance(error, FileNotFoundError):
        raise error


def _lstat_size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return 0
