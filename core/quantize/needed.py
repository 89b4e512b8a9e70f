"""What jobs of quantizing that are not done still read: it is not deleted under them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from core.common.errors import CheckpointError, InputError
from core.common.values import printable
from core.quantize import folders
from core.quantize.job_file import read_job


def needed_by_job(folder: Path) -> InputError | None:
    """Why the model or adapter in `folder` is not deleted: a job reads it, or what lies in it, now or later."""
    # Of a link only the link would go: not what it leads to.
    gone = {os.path.abspath(folder), _in_real_folder(folder)}
    for name in folders.unfinished_jobs():
        there = folders.job_folder(name)
        try:
            job = read_job(there)
        except CheckpointError:
            continue
        # One that was copied or renamed is no job.
        if job.name != name:
            continue
        if any(place in gone for path in (job.source, *job.options.adapters) for place in _places(path)):
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
