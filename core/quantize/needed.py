"""What jobs of quantizing that are not done still read: it is not deleted under them."""

from __future__ import annotations

from pathlib import Path

from core.common.errors import CheckpointError, InputError
from core.common.values import printable
from core.quantize import folders
from core.quantize.job_file import read_job


def needed_by_job(folder: Path) -> InputError | None:
    """Why the model or adapter in `folder` is not deleted: a job reads it, or what lies in it, now or later."""
    gone = folder.absolute()
    for name in folders.unfinished_jobs():
        try:
            job = read_job(folders.job_folder(name))
        except CheckpointError:
            continue
        if any(path == gone or gone in path.parents for path in (job.source, *job.options.adapters)):
            return InputError("delete_needed", name=printable(folder.name), job=job.name)
    return None
