"""Where a job of quantizing lies: models/.quantize-NAME until it is done, then models/NAME."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from core.bootstrap.pip import DISK_FULL
from core.common.errors import DeckError, causes
from core.common.files import folder_bytes, remove, sync
from core.common.paths import models_dir
from core.common.values import printable
from core.hub.folders import MARGIN_BYTES, ModelFolders
from core.hub.source import Source, folder_name
from core.library.scan import free_bytes

PREFIX = ".quantize-"
LOCK, LOG = ".lock", "build.log"
# What was fetched to be quantized; the library does not see it.
SOURCES = ".sources"
MIB = 2**20
# A disk with less is full: not every library tells why it could not write.
NO_ROOM_BYTES = MIB


def job_folder(name: str) -> Path:
    return models_dir() / f"{PREFIX}{name}"


def sources_folder() -> Path:
    return models_dir() / SOURCES


def unfinished_jobs() -> list[str]:
    """The names of the jobs that began here and did not end."""
    try:
        names = sorted(entry.name for entry in os.scandir(models_dir()) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []
    return [name[len(PREFIX) :] for name in names if name.startswith(PREFIX) and printable(name) == name]


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock of a job's folder, which ends with its process. Raises DeckError where another holds it."""
    with errors_explained(job_folder(name)):
        job_folder(name).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(job_folder(name) / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DeckError("quantize_elsewhere", name=name) from error
        yield
    finally:
        os.close(descriptor)


def is_locked(name: str) -> bool:
    """Whether somebody works at this job now."""
    try:
        with open(job_folder(name) / LOCK, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@dataclass(frozen=True, slots=True)
class LeftFolder:
    """What a job that failed has on the disk."""

    folder: Path
    num_bytes: int


def left_folders(name: str, source: Source | None) -> tuple[LeftFolder, ...]:
    """What there is of a job, and of what was fetched for it."""
    places = [job_folder(name)]
    if source is not None:
        fetched = ModelFolders(sources_folder(), folder_name(source))
        places += [fetched.unfinished, fetched.finished]
    return tuple(LeftFolder(place, folder_bytes(place)) for place in places if place.is_dir())


def remove_job(name: str) -> None:
    """Remove what a job left. Raises OSError."""
    remove(job_folder(name))


def remove_source(folder: Path) -> None:
    """Remove what was fetched to be quantized, and the place for it where nothing else is there. Raises OSError."""
    remove(folder)
    with suppress(OSError):
        sources_folder().rmdir()


def place(name: str) -> Path:
    """Rename the finished checkpoint into models/. Raises DeckError; what is there stays."""
    target = models_dir() / name
    with errors_explained(target):
        if os.path.lexists(target):
            raise DeckError("quantize_there", name=name)
        out = job_folder(name) / "out"
        for path in out.iterdir():
            sync(path)
        sync(out)
        os.rename(out, target)
        sync(target.parent)
    return target


def lack_of_room(name: str, needed_bytes: int, source: Source | None = None) -> DeckError | None:
    """What to say where the disk with models/ has less room than a job takes at most; None where it has enough.

    needed_bytes: all that the job writes, with what is fetched from `source`. What is there of it already counts.
    """
    there_bytes = sum(one.num_bytes for one in left_folders(name, source))
    # The reader adds them up: each is rounded to the side that is safe.
    needed_mib, kept_mib = -(-max(0, needed_bytes - there_bytes) // MIB), MARGIN_BYTES // MIB
    free_mib = free_bytes(models_dir()) // MIB
    more_mib = needed_mib + kept_mib - free_mib
    if more_mib <= 0:
        return None
    return DeckError("quantize_space", folder=printable(str(models_dir())), needed_mib=needed_mib, kept_mib=kept_mib,
                     free_mib=free_mib, more_mib=more_mib)  # fmt: skip


def check_room(name: str, needed_bytes: int, source: Source | None = None) -> None:
    """Raises DeckError where lack_of_room has something to say."""
    if (lack := lack_of_room(name, needed_bytes, source)) is not None:
        raise lack


@contextmanager
def errors_explained(path: Path) -> Iterator[None]:
    """Turn an OSError into a sentence about `path`."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise disk_full() from error
        where = printable(str(error.filename or path))
        raise DeckError("download_write", path=where, why=error.strerror or str(error)) from error


def is_full(error: BaseException) -> bool:
    """Whether `error`, or what it came from, says that a disk is full; safetensors says so in words alone."""
    return any(
        (isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT)) or re.search(DISK_FULL, str(one))
        for one in causes(error)
    )


def has_no_room() -> bool:
    """Whether next to nothing is free on the disk with models/."""
    return free_bytes(models_dir()) < NO_ROOM_BYTES


def disk_full() -> DeckError:
    return DeckError(
        "quantize_disk_full", folder=printable(str(models_dir())), free_mib=free_bytes(models_dir()) // MIB
    )
