"""What changes when a model or an adapter does, told without reading its files."""

from __future__ import annotations

import os
from pathlib import Path

Fingerprint = tuple[tuple[bytes, int, int], ...]


def fingerprint(folder: Path) -> Fingerprint:
    """Name, size and time of every file in `folder`; nothing of one that cannot be read."""
    try:
        with os.scandir(os.fsencode(folder)) as files:
            found = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError:
        return ()
    return tuple(sorted(found))
