"""Files and folders that are whole or not there: locks, room, flushing, clearing up."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from core.common.errors import StarterError
from core.common.files import remove, sync

PARTIAL = ".partial-"


@contextmanager
def exclusive(path: Path, waits: Callable[[], None]) -> Iterator[None]:
    """One process at a time, by a lock on the file `path` that ends with its holder.

    `waits` is called when another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def os_errors_explained(needed_bytes: int) -> Iterator[None]:
    """Turn an OSError into a sentence; `needed_bytes` is what to make room for where the disk is full."""
    try:
        yield
    except OSError as error:
        path = Path(error.filename or ".")
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(path, needed_bytes) from error
        raise StarterError("starter_os_error", path=str(path), reason=error.strerror or str(error)) from error


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raise StarterError where the disk that holds `folder` has less room than that."""
    if shutil.disk_usage(folder).free < needed_bytes:
        raise disk_full(folder.parent, needed_bytes)


def disk_full(path: Path, needed_bytes: int) -> StarterError:
    return StarterError("starter_disk_full", path=str(path), needed_mib=needed_bytes >> 20)


def remove_partials(folder: Path, prefix: str) -> None:
    """Remove what interrupted builds left; only for the holder of the folder's lock."""
    for path in folder.iterdir():
        if path.name.startswith(prefix):
            remove(path)


def sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)
