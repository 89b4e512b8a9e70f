"""What jobs of quantizing that are not done still read: it is not deleted under them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from core.common.errors import CheckpointError, InputError
from core.common.values import printable
from core.quantize import folders
from core.quantize.job_file import read_job

# Of a job its name, and where what it still reads is, with all folders above.
Needs = Sequence[tuple[str, frozenset[str]]]


def job_needs() -> Needs:
    """What the jobs that are not done read, now or later."""
    found = []
    for name in folders.unfinished_jobs():
        try:
            job = read_job(folders.job_folder(name))
        except CheckpointError:
            continue
        # One that was copied or renamed is no job.
        if job.name == name:
            places = (place for path in (job.source, *job.options.adapters) for place in _places(path))
            found.append((name, frozenset(places)))
    return found


def needed_by_job(folder: Path, needs: Needs | None = None) -> InputError | None:
    """Why the model or adapter in `folder` is not deleted: a job reads it, or what lies in it, now or later. needs:
    from `job_needs`, where many folders are asked for at once."""
    # Of a link only the link would go: not what it leads to.
    gone = {os.path.abspath(folder), _in_real_folder(folder)}
    for name, places in job_needs() if needs is None else needs:
        if places & gone:
            there = folders.job_folder(name)
            return InputError("delete_needed", name=printable(folder.name), job=name, folder=printable(str(there)))
    return None


def require_unneeded(folder: Path) -> None:
    """Raises InputError where `needed_by_job` has a reason."""
    if (needed := needed_by_job(folder)) is not None:
        raise needed


def _places(path: Path) -> Iterator[str]:
    """Where `path` is, by the names in it and with its links followed, and all folders above."""
    for place in (os.path.abspath(path), _in_real_folder(path), os.path.realpath(path)):
        yield place
        yield from map(str, Path(place).parents)


def _in_real_folder(path: Path) -> str:
    """`path` with the links above it followed, and not its own."""
    path = Path(os.path.abspath(path))
    return os.path.join(os.path.realpath(path.parent), path.name)
