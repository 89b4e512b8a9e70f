"""The models that are on disk, one folder each; knows not whether they fit a GPU or are loaded."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from core.checkpoint import Checkpoint, read_checkpoint
from core.errors import CheckpointError, DeckError, InputError
from core.model_files import printable, unreadable
from core.settings import models_dir


@dataclass(frozen=True, slots=True)
class LibraryEntry:
    """One folder under models/: a checkpoint, or the reason why it is none."""

    name: str
    checkpoint: Checkpoint | None
    error: DeckError | None


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
    names = [entry.name for entry in scan()]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names[:3]
        raise InputError("unknown_model", name=name, near=", ".join(near) or "-")
    return read_checkpoint(models_dir() / name)
