"""Why a job failed the last time, kept in its folder: other processes show it, and this one after a restart."""

from __future__ import annotations

import json
import os
from pathlib import Path

from core.checkpoint.headers import read_json
from core.common.errors import CheckpointError, DeckError
from core.common.i18n import catalogue

FILE = "failed.json"
# The file has its room before the work begins: on a disk that is full by then it would get none.
ROOM_BYTES = 4096


def forget_failure(folder: Path) -> None:
    """The job goes on. Raises OSError."""
    _write(folder, "")


def keep_failure(folder: Path, error: DeckError) -> None:
    """Raises OSError."""
    _write(folder, json.dumps({"key": error.key, "params": error.params}, ensure_ascii=False))


def read_failure(folder: Path) -> DeckError | None:
    """None where it did not fail, or where nothing that can be read tells of it."""
    try:
        found = read_json(folder / FILE) or {}
        key, params = found["key"], found["params"]
        if f"error.{key}" not in catalogue("en"):
            return None
        error = DeckError(key, **params)
        # Another version of this program may have other values for it.
        str(error)
        return error
    except (CheckpointError, LookupError, TypeError, ValueError):
        return None


def _write(folder: Path, content: str) -> None:
    """Write into the room that the file has."""
    descriptor = os.open(folder / FILE, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.encode("utf-8", "replace").ljust(ROOM_BYTES))
        file.truncate()
