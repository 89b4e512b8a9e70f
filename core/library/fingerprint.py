"""What changes when a model or an adapter does, told without reading its files."""

from __future__ import annotations

import os
from pathlib import Path

Fingerprint = tuple[tuple[bytes, int, int], ...]


def fingerprint(folder: Path) -> Fingerprint:
    """Name, size and time of every file in `folder`; nothing of one that cannot be read."""
    try:
        with os.scandir(os.fsencode(folder)) as files:
            found = [(file.name, status.st_size, status.st_mtime_ns) for file in files for status in [_status(file)]]
    except OSError:
        return ()
    return tuple(sorted(found))


def _status(file: os.DirEntry[bytes]) -> os.stat_result:
    """Of a link to nothing the link's own."""
    try:
        return file.stat()
    except FileNotFoundError:
        return file.stat(follow_symlinks=False)
