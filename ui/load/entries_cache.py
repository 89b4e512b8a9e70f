"""The models on disk as pages need them on every run: a folder is read once until it changes."""

from __future__ import annotations

import os
from pathlib import Path

from core.library.scan import LibraryEntry, scan
from ui.shared.resources import library_entry

Fingerprint = tuple[tuple[bytes, int, int], ...]


def models() -> list[LibraryEntry]:
    """What core.library.scan.scan gives, without reading an unchanged folder again. Raises CheckpointError."""
    return scan(lambda folder: library_entry(os.fsencode(folder), fingerprint(folder)))


def fingerprint(folder: Path) -> Fingerprint:
    """Name, size and time of every file in `folder`: what changes when a checkpoint does."""
    try:
        with os.scandir(os.fsencode(folder)) as files:
            found = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError:
        return ()
    return tuple(sorted(found))
