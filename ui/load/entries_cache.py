"""The models on disk as pages need them on every run: a folder is read once until it changes."""

from __future__ import annotations

import os
from pathlib import Path

from core.checkpoint.headers import unreadable
from core.common.paths import models_dir
from core.library.scan import LibraryEntry, is_model_folder
from ui.shared.resources import library_entry

Fingerprint = tuple[tuple[bytes, int, int], ...]


def models() -> list[LibraryEntry]:
    """Every model folder by name, as core.library.scan.scan gives them, without reading an unchanged one again.

    Raises CheckpointError where the folder with the models cannot be read itself.
    """
    base = models_dir()
    try:
        folders = [path for path in base.iterdir() if is_model_folder(path)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(base, error) from error
    folders.sort(key=lambda path: path.name.casefold())
    return [library_entry(os.fsencode(folder), fingerprint(folder)) for folder in folders]


def fingerprint(folder: Path) -> Fingerprint:
    """Name, size and time of every file in `folder`: what changes when a checkpoint does."""
    try:
        with os.scandir(os.fsencode(folder)) as files:
            found = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError:
        return ()
    return tuple(sorted(found))
