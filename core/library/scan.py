"""The models on disk, one folder each: those in models/, and the GPTQ models in Hugging Face's cache."""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.checkpoint.headers import unreadable
from core.checkpoint.weight_files import is_plain_name
from core.common.errors import CheckpointError, DeckError, InputError
from core.common.paths import adapters_dir, cached_repo, model_name, models_dir
from core.common.values import printable
from core.hub.record import Record, read_record
from core.library.hf_cache import readable_snapshots, snapshot_record


@dataclass(frozen=True, slots=True)
class LibraryEntry:
    """One folder: a checkpoint, or the reason why it is none. `name` is what people call it, in printable letters."""

    name: str
    folder: Path
    checkpoint: Checkpoint | None
    error: DeckError | None

    @property
    def is_cached(self) -> bool:
        """Whether it lies in Hugging Face's cache, which this program does not change."""
        return cached_repo(self.folder) is not None


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """A model's folder beside its checkpoint. `record` is None for one that came neither from here nor with `hf`."""

    size_bytes: int
    is_link: bool
    record: Record | None


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """In bytes: all of models/, and of adapters/ where that is on the same disk, unfinished downloads too; the disk."""

    models_bytes: int
    adapters_bytes: int
    free_bytes: int
    total_bytes: int


def read_entry(folder: Path) -> LibraryEntry:
    try:
        return LibraryEntry(model_name(folder), folder, read_checkpoint(folder), None)
    except CheckpointError as error:
        return LibraryEntry(printable(model_name(folder)), folder, None, error)


def scan(read: Callable[[Path], LibraryEntry] = read_entry) -> list[LibraryEntry]:
    """Every model, those in models/ by name and then those in Hugging Face's cache, each read by `read`.

    A folder in models/ that cannot be loaded is an entry that says why. What cannot be loaded in the cache is left
    out: most of it is no GPTQ model. Raises CheckpointError where models/ cannot be read itself.
    """
    return [*map(read, list_folders(models_dir())), *cached_entries(read)]


def list_folders(base: Path) -> list[Path]:
    try:
        return sorted(filter(is_model_folder, base.iterdir()), key=lambda path: path.name.casefold())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(base, error) from error


def cached_entries(read: Callable[[Path], LibraryEntry] = read_entry) -> list[LibraryEntry]:
    return [entry for entry in map(read, readable_snapshots()) if entry.checkpoint is not None]


def is_model_folder(path: Path) -> bool:
    """Folders whose names begin with a dot are unfinished work, not models."""
    return path.is_dir() and not path.name.startswith(".")


def find(name: str) -> Checkpoint:
    """The checkpoint called `name`. Raises InputError for an unknown one, CheckpointError for a broken one."""
    return read_checkpoint(folder_of(name))


def list_names() -> list[str]:
    """What can be named for a load, in the order of `scan`; reads no model. Raises CheckpointError as `scan` does."""
    folders = [*list_folders(models_dir()), *readable_snapshots()]
    return [name for folder in folders if is_plain_name(name := model_name(folder)) and printable(name) == name]


def folder_of(name: str) -> Path:
    """The folder of the model that is called `name`, also of one that cannot be loaded. Raises InputError."""
    names = [entry.name for entry in scan()]
    if name not in names or not is_plain_name(name):
        if (model := name.rstrip(" ").removesuffix(":")) != name.rstrip(" ") and model in names:
            raise InputError("unknown_model_colon", name=printable(name), model=model)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names[:3]
        if not near:
            raise InputError("unknown_model_of_none", name=printable(name))
        raise InputError("unknown_model", name=printable(name), near=", ".join(near))
    return locate(name)


def locate(name: str) -> Path:
    """Where the model called `name` is to be found: in models/, or else in Hugging Face's cache. Reads no model."""
    folder = models_dir() / name
    if "@" not in name or folder.exists():
        return folder
    return next((snapshot for snapshot in readable_snapshots() if model_name(snapshot) == name), folder)


def facts(folder: Path) -> FolderFacts:
    """What a model's folder takes and where it came from. Raises CheckpointError where it cannot be read."""
    return FolderFacts(size_bytes(folder), folder.is_symlink(), find_record(folder))


def find_record(folder: Path) -> Record | None:
    """Where the model in `folder` came from, with its files' hashes. Raises CheckpointError."""
    try:
        return read_record(folder) if cached_repo(folder) is None else snapshot_record(folder)
    except OSError as error:
        raise unreadable(folder, error) from error


def size_bytes(folder: Path) -> int:
    """The bytes of all files below `folder`, a link to it included.

    Links inside of it count nothing, but a snapshot in Hugging Face's cache is made of links.
    """
    stat = os.stat if cached_repo(folder) is not None else os.lstat
    try:
        total = 0
        for path, _, names in os.walk(folder.resolve(), onerror=_raise):
            total += sum(_size(os.path.join(path, name), stat) for name in names)
        return total
    except OSError as error:
        raise unreadable(folder, error) from error


def disk_usage() -> DiskUsage:
    """How full the disk with models/ is. Raises CheckpointError where it cannot be read."""
    models, adapters = models_dir(), adapters_dir()
    place = _place(models)
    try:
        usage = shutil.disk_usage(place)
        has_adapters = adapters.exists() and adapters.stat().st_dev == place.stat().st_dev
    except OSError as error:
        raise unreadable(place, error) from error
    return DiskUsage(
        size_bytes(models) if models.exists() else 0,
        size_bytes(adapters) if has_adapters else 0,
        usage.free,
        usage.total,
    )


def free_bytes(folder: Path) -> int:
    """How much is free where `folder` is, or will be. Raises CheckpointError where that cannot be read."""
    place = _place(folder)
    try:
        return shutil.disk_usage(place).free
    except OSError as error:
        raise unreadable(place, error) from error


def _place(folder: Path) -> Path:
    """`folder`, or what of its path is there."""
    return next(path for path in (folder, *folder.resolve().parents) if path.exists())


def _raise(error: OSError) -> None:
    # A folder can go while it is looked at, when a download ends.
    if not isinstance(error, FileNotFoundError):
        raise error


def _size(path: str, stat: Callable[[str], os.stat_result]) -> int:
    try:
        return stat(path).st_size
    except FileNotFoundError:
        return 0
