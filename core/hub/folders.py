"""The two folders of a model that is being downloaded: the unfinished and the finished one.

A model lies in models/.download-FOLDER until every file is there and right; the library does not see that folder. Then
the whole folder is renamed. Where models/FOLDER exists already (text-generation-webui's, or an older revision), files
with the right hash are not fetched again, and new ones move in one by one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from core.common.errors import DeckError, InputError
from core.common.files import remove, sync
from core.common.values import printable
from core.hub.record import Record, read_record, write_record
from core.hub.source import RemoteFile, Source, folder_name

PREFIX = ".download-"
PART = ".part"
LOCK = ".lock"
# What is not used up on a disk, so that the machine goes on living.
MARGIN_BYTES = 64 << 20
# Another process may hold the lock for a moment only, to see whether it is held.
LOCK_TRIES, LOCK_PAUSE_S = 10, 0.02


@dataclass(frozen=True, slots=True)
class ModelFolders:
    """Where the model called `name` is downloaded to."""

    models: Path
    name: str

    @property
    def finished(self) -> Path:
        return self.models / self.name

    @property
    def unfinished(self) -> Path:
        return self.models / f"{PREFIX}{self.name}"

    def part(self, file: RemoteFile) -> Path:
        return self.unfinished / f"{file.name}{PART}"

    def whole(self, file: RemoteFile) -> Path:
        """Where a file lies that is whole and right while others are not."""
        return self.unfinished / file.name

    def done_bytes(self, file: RemoteFile) -> int:
        """What of `file` is on disk, at most all of it."""
        if is_whole(self.whole(file), file):
            return file.size_bytes
        return min(_size(self.part(file)), file.size_bytes)


def model_folders(models: Path, source: Source) -> ModelFolders:
    """Where `source` goes. Raises InputError where its folder belongs to another model, or is none of ours to fill."""
    folders = ModelFolders(models, folder_name(source))
    for folder in (folders.unfinished, folders.finished):
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise InputError("download_folder", folder=str(folder))
        record = read_record(folder)
        if record is not None and not record.source.is_same_model(source):
            raise InputError("download_other", folder=folders.name, model=source.name, other=record.source.name)
    return folders


def unfinished_models(models: Path) -> list[ModelFolders]:
    """The models whose download began here and did not end, by name."""
    try:
        names = sorted(entry.name for entry in os.scandir(models) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []
    return [
        ModelFolders(models, name[len(PREFIX) :])
        for name in names
        if name.startswith(PREFIX) and printable(name) == name
    ]


@contextmanager
def locked(folders: ModelFolders) -> Iterator[None]:
    """Hold the lock of an unfinished folder: no other process, and no other job of this process, downloads into it.

    The lock ends with the process that holds it, however that ends. Raises DeckError where another holds it.
    """
    path = folders.models / f"{PREFIX}{folders.name}{LOCK}"
    with os_errors_explained(folders.models):
        folders.models.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path, folders)
    try:
        yield
    finally:
        # Whoever waits for this very file sees that its name is gone or another's, and takes a new one.
        with suppress(OSError):
            os.unlink(path)
        os.close(descriptor)


def _lock(path: Path, folders: ModelFolders) -> int:
    for _ in range(LOCK_TRIES):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            time.sleep(LOCK_PAUSE_S)
        os.close(descriptor)
    with suppress(OSError):
        holder = path.read_text("ascii", "replace")
        raise DeckError("download_elsewhere", folder=folders.name, pid=printable(holder[:20]))
    raise DeckError("download_elsewhere", folder=folders.name, pid="?")


def is_locked(folders: ModelFolders) -> bool:
    """Whether somebody downloads into these folders now."""
    try:
        with open(folders.models / f"{PREFIX}{folders.name}{LOCK}", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def is_fetching(models: Path) -> bool:
    """Whether somebody downloads anything into `models` now."""
    return any(map(is_locked, unfinished_models(models)))


def begin(folders: ModelFolders, record: Record) -> bool:
    """Make the unfinished folder for `record`. Parts and files of other bytes go; returns whether there were any."""
    with os_errors_explained(folders.models):
        folders.unfinished.mkdir(parents=True, exist_ok=True)
        before = read_record(folders.unfinished)
        old = {} if before is None else {file.name: file for file in before.files}
        wanted = {file.name: file for file in record.files}
        changed = [file for name, file in old.items() if name not in wanted or not wanted[name].is_same(file)]
        # Parts that no record tells of could be of anything.
        changed += [file for name, file in wanted.items() if name not in old]
        found = [
            path for file in changed for path in (folders.part(file), folders.whole(file)) if os.path.lexists(path)
        ]
        for path in found:
            os.unlink(path)
        write_record(folders.unfinished, record)
        return bool(found)


def remember(folders: ModelFolders, source: Source) -> None:
    """Write down that `source` is to be fetched, so that a process that starts later knows of it."""
    with os_errors_explained(folders.models):
        folders.unfinished.mkdir(parents=True, exist_ok=True)
        if read_record(folders.unfinished) is None:
            write_record(folders.unfinished, Record(source))


def discard(folders: ModelFolders) -> None:
    """Remove the unfinished folder with all that is in it."""
    with os_errors_explained(folders.models):
        remove(folders.unfinished)


def has_bytes(folders: ModelFolders) -> bool:
    """Whether anything was fetched that a later try can use."""
    record = read_record(folders.unfinished)
    return record is not None and any(folders.done_bytes(file) for file in record.files)


def finish(folders: ModelFolders, record: Record) -> None:
    """Turn the unfinished folder into the finished one. Every file in it is right and flushed."""
    with os_errors_explained(folders.models):
        if folders.finished.is_dir():
            _move_in(folders, record)
        else:
            sync(folders.unfinished)
            os.rename(folders.unfinished, folders.finished)
        sync(folders.models)


def _move_in(folders: ModelFolders, record: Record) -> None:
    """Files go into a folder that is there. What stood there and was not ours, such as an edited config, is kept."""
    before = read_record(folders.finished)
    ours = {file.name for file in before.files} if before is not None else set()
    for file in record.files:
        fetched, target = folders.whole(file), folders.finished / file.name
        if not fetched.exists():
            continue
        if file.name not in ours and target.is_file() and not file.name.endswith(".safetensors"):
            os.replace(target, folders.finished / f"{file.name}.before")
        os.replace(fetched, target)
    sync(folders.finished)
    write_record(folders.finished, record)
    sync(folders.finished)
    remove(folders.unfinished)


def check_room(models: Path, missing_bytes: int) -> None:
    """Raise DeckError where the disk with `models` has less room than is still to be written and a margin."""
    free_bytes = shutil.disk_usage(models).free
    if free_bytes < missing_bytes + MARGIN_BYTES:
        more_mib = (missing_bytes + MARGIN_BYTES - free_bytes + 1023 * 1024) >> 20
        needed_mib = (missing_bytes >> 20) + 1
        raise DeckError("download_space", folder=printable(str(models)), needed_mib=needed_mib, more_mib=more_mib)


@contextmanager
def os_errors_explained(folder: Path) -> Iterator[None]:
    """Turn an OSError into a sentence about `folder`, or about the file that it names."""
    try:
        yield
    except OSError as error:
        path = printable(str(error.filename or folder))
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DeckError("download_disk_full", folder=printable(str(folder))) from error
        if error.errno == errno.EFBIG:
            raise DeckError("download_file_limit", folder=printable(str(folder))) from error
        raise DeckError("download_write", path=path, why=error.strerror or str(error)) from error


def is_whole(path: Path, file: RemoteFile) -> bool:
    """Whether `path` is a file of the right size. In an unfinished folder its bytes were right when it got its name."""
    return not path.is_symlink() and path.is_file() and _size(path) == file.size_bytes


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
