"""What is done with the models and adapters on disk: verified, deleted, imported. Only models/ and adapters/ are ever
written to."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from core.checkpoint.checkpoint import read_checkpoint
from core.checkpoint.weight_files import is_plain_name
from core.common.errors import CheckpointError, DeckError, InputError
from core.common.files import remove, sync
from core.common.paths import adapters_dir, cached_repo, model_name, models_dir
from core.common.values import printable
from core.hub.folders import MARGIN_BYTES, os_errors_explained
from core.hub.hashing import is_right_file
from core.library.scan import find_record, folder_of

DELETING = ".deleting-"
IMPORTING = ".importing-"
# Gets the bytes that are done and the bytes in all; what it raises ends the work.
Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Verification:
    """What a check found. Without a record of the files' hashes only the structure could be checked, not the bytes."""

    name: str
    checked_bytes: int
    has_record: bool
    problems: tuple[DeckError, ...]

    @property
    def is_right(self) -> bool:
        return not self.problems


def verify(name: str, report: Report) -> Verification:
    """Hold every file of a model against the sizes and hashes that its hub gave, or else against its own headers.

    Raises InputError for a model that is not there, DeckError where a file cannot be read.
    """
    folder = folder_of(name)
    problems: list[DeckError] = []
    record = find_record(folder)
    done_bytes, total_bytes = 0, record.size_bytes if record else 0
    for file in record.files if record else ():
        path = folder / file.name
        with os_errors_explained(folder):
            right = is_right_file(path, file, partial(_report_after, report, done_bytes, total_bytes))
        if not right:
            key = "verify_wrong" if path.exists() else "verify_missing"
            problems.append(CheckpointError(key, folder=name, file=file.name))
        done_bytes += file.size_bytes
        report(done_bytes, total_bytes)
    if not problems:
        try:
            read_checkpoint(folder)
        except CheckpointError as error:
            problems.append(error)
    return Verification(name, done_bytes, bool(record and record.files), tuple(problems))


def delete_refusal(folder: Path) -> InputError | None:
    """Why the model in `folder` is not deleted: Hugging Face's cache belongs to other programs as well."""
    repo = cached_repo(folder)
    if repo is None:
        return None
    return InputError("delete_cached", name=model_name(folder), command=f"hf cache rm model/{repo}")


def folder_to_delete(name: str) -> Path:
    """Raises InputError for a model that is not there, or that is not to be deleted."""
    folder = folder_of(name)
    if (refusal := delete_refusal(folder)) is not None:
        raise refusal
    return folder


def delete(name: str) -> None:
    """Remove a model's folder; of a linked one only the link. It is gone at once, also if the process is killed.

    Raises InputError as folder_to_delete() does, DeckError where it cannot be removed.
    """
    _remove_at_once(folder_to_delete(name))


def adapter_refusal(folder: Path) -> InputError | None:
    """Why the adapter in `folder` is not deleted: it lies in a model's folder that is elsewhere, and others may use."""
    model = folder.parent
    if model == adapters_dir() or not (model.is_symlink() or cached_repo(model)):
        return None
    return InputError("delete_adapter_elsewhere", name=printable(folder.name), folder=printable(str(folder.resolve())))


def delete_adapter(folder: Path) -> None:
    """Remove an adapter's folder as `delete` does a model's. Raises InputError where `adapter_refusal` has a reason,
    DeckError where it cannot be removed."""
    if (refusal := adapter_refusal(folder)) is not None:
        raise refusal
    _remove_at_once(folder)


def _remove_at_once(folder: Path) -> None:
    with os_errors_explained(folder):
        if folder.is_symlink():
            folder.unlink()
        else:
            # Its own name with anything added may be too long for a disk.
            os.rename(folder, folder.with_name(f"{DELETING}{secrets.token_hex(8)}"))
        sync(folder.parent)
        remove_leftovers(folder.parent, DELETING)


def import_folder(path: Path, report: Report, link: bool = False) -> str:
    """Copy the model in the folder `path` into models/, or link it; returns the model's name there.

    Raises InputError where that name is taken, CheckpointError for a folder that holds no model, DeckError where
    models/ cannot be written.
    """
    source = Path(os.path.abspath(path.expanduser()))
    name = read_checkpoint(source).name
    base = models_dir()
    target = base / name
    if name.startswith(".") or not is_plain_name(name) or os.path.lexists(target):
        raise InputError("import_name", folder=printable(name))
    with os_errors_explained(base):
        base.mkdir(parents=True, exist_ok=True)
        if link:
            target.symlink_to(source, target_is_directory=True)
        else:
            _copy_model(source, target, report)
    return name


def _report_after(report: Report, before_bytes: int, total_bytes: int, done_bytes: int) -> None:
    report(before_bytes + done_bytes, total_bytes)


def remove_leftovers(base: Path, prefix: str) -> None:
    """Remove what deletions left, of this process and of those that were killed."""
    for path in base.glob(f"{prefix}*"):
        remove(path)


def _copy_model(source: Path, target: Path, report: Report) -> None:
    """The files at the folder's top, which is all that a model is; seen in models/ when the last one is there."""
    files = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith(".new-"))
    total_bytes = sum(path.stat().st_size for path in files)
    free_bytes = shutil.disk_usage(target.parent).free
    if free_bytes < total_bytes + MARGIN_BYTES:
        needed_mib, free_mib = (total_bytes + MARGIN_BYTES) >> 20, free_bytes >> 20
        raise DeckError("import_space", folder=printable(str(source)), needed_mib=needed_mib, free_mib=free_mib)
    work = target.with_name(f"{IMPORTING}{target.name}")
    try:
        remove(work)
        work.mkdir()
        done_bytes = 0
        for path in files:
            done_bytes = _copy_file(path, work / path.name, done_bytes, total_bytes, report)
        sync(work)
        os.rename(work, target)
        sync(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _copy_file(source: Path, target: Path, done_bytes: int, total_bytes: int, report: Report) -> int:
    """Returns the bytes that are done in all."""
    with source.open("rb") as reader, target.open("xb") as writer:
        while block := reader.read(1 << 20):
            writer.write(block)
            done_bytes += len(block)
            report(done_bytes, total_bytes)
        writer.flush()
        os.fsync(writer.fileno())
    return done_bytes
