"""Files of a folder that people see too: written whole, deleted into a trash. What the disk refuses is a sentence."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from core.common.errors import DeckError
from core.common.files import remove, write_atomically
from core.common.values import printable
from core.personas.fields import visible

TRASH = ".trash"
# time.time_ns() in 20 digits.
TRASHED = re.compile("[0-9]{20}")
MAX_TRASH = 100
# What tells one state of a file from another: its time and size.
FileStamp = tuple[int, int]


def stamp(path: Path) -> FileStamp:
    """Raises OSError."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def visible_names(folder: Path) -> list[str]:
    """The names of all files that are not hidden; none where there is no folder yet. Raises DeckError."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(folder, error) from error


def unreadable(path: Path, error: OSError) -> DeckError:
    return DeckError("unreadable", file=visible(str(path)), why=error.strerror or str(error))


def write(path: Path, content: bytes) -> None:
    """Raises DeckError; then the old file is as it was."""
    with _saying(path.name):
        write_atomically(path, content)


def unlink(path: Path) -> None:
    with _saying(path.name):
        path.unlink(missing_ok=True)


def move(path: Path, target: Path) -> None:
    with _saying(path.name):
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)


class Trash:
    """What was deleted from a folder. Each deletion has a name, and at most the last MAX_TRASH are kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / TRASH

    def put(self, paths: Iterable[Path]) -> str:
        """Move the files here; answers the name of this deletion. Raises DeckError."""
        name = f"{time.time_ns():020d}"
        for path in paths:
            move(path, self._folder / name / path.name)
        for old in self._names()[:-MAX_TRASH]:
            with contextlib.suppress(OSError):
                remove(self._folder / old)
        return name

    def files(self, name: str) -> list[Path]:
        """The files of one deletion; none where it is here no more."""
        return sorted((self._folder / name).iterdir()) if name in self._names() else []

    def forget(self, name: str) -> None:
        """Remove the empty folder of a deletion whose files were moved back."""
        (self._folder / name).rmdir()

    def _names(self) -> list[str]:
        """The deletions, oldest first. The folder may be a link to one that holds other things."""
        return sorted(filter(TRASHED.fullmatch, os.listdir(self._folder))) if self._folder.is_dir() else []


@contextlib.contextmanager
def _saying(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DeckError("character_write", file=printable(name), why=error.strerror or str(error)) from error
