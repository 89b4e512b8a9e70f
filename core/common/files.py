"""Atomic writes, which leave the old or the new file after a power cut, and other operations on whole files."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

PREFIX = ".new-"
# No write takes this long: an older temporary file was left by a process that was killed.
LEFTOVER_AGE_S = 3600.0


def write_atomically(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write `content` so that `path` holds the old or the new one whenever it is read, with the permissions `mode`.

    Raises OSError; then the old file is as it was and nothing new lies beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=PREFIX)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Write a file or a folder through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The digest of a file's bytes, as hex digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(path: Path) -> None:
    """Remove a folder with all that is in it, or a file; of a link only the link, never what it leads to.

    Nothing there is fine. Raises OSError.
    """
    with suppress(FileNotFoundError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)


def folder_bytes(folder: Path) -> int:
    """What the files in a folder and below have together, as far as they can be looked at; of a link nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed writes from `folder`: they may hold secrets that were revoked since."""
    try:
        for entry in os.scandir(folder):
            age_s = time.time() - entry.stat(follow_symlinks=False).st_mtime
            if entry.name.startswith(PREFIX) and age_s > LEFTOVER_AGE_S:
                os.unlink(entry)
    except OSError:
        # Somebody else removed it, or may not.
        return


Versions = tuple[tuple[str, int, int], ...]


def file_versions(folder: Path, names: Iterable[str]) -> Versions:
    """Name, change time in ns and size of each of the files `names` in `folder`: what changes with any of them."""
    found = []
    for name in names:
        with suppress(OSError):
            status = (folder / name).stat()
            found.append((name, status.st_mtime_ns, status.st_size))
    return tuple(found)


def regular_size(path: Path) -> int:
    """The bytes of a regular file. Raises OSError for other kinds: a pipe or a device may never end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    return status.st_size
