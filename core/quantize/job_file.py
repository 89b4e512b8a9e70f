"""What a job is, written down beside its work: it outlives the process that began it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.checkpoint.headers import read_json
from core.common.errors import CheckpointError, InputError
from core.common.files import write_atomically
from core.quantize.options import QuantizeOptions

FILE = "job.json"


@dataclass(frozen=True, slots=True)
class JobFile:
    """`name`: the result's folder under models/. `source`: the folder of what is quantized, at its place on disk.

    `repo`: where it was fetched from, or "". `is_meta`: it is in Meta's original format. `device`: "cpu" or "cuda:N".
    """

    name: str
    source: Path
    options: QuantizeOptions
    repo: str = ""
    is_meta: bool = False
    device: str = "cpu"


def write_job(folder: Path, job: JobFile) -> None:
    """Raises OSError."""
    value = {
        "name": job.name,
        "source": str(job.source),
        "options": job.options.as_json(),
        "repo": job.repo,
        "is_meta": job.is_meta,
        "device": job.device,
    }
    write_atomically(folder / FILE, json.dumps(value, indent=1) + "\n")


def read_job(folder: Path) -> JobFile:
    """The job in `folder`. Raises CheckpointError where there is none."""
    try:
        value: dict[str, Any] | None = read_json(folder / FILE)
        if value is None:
            raise CheckpointError("no_folder", folder=folder.name)
        options = QuantizeOptions.from_json(value["options"])
        return JobFile(value["name"], Path(value["source"]), options, value["repo"], value["is_meta"], value["device"])
    except (KeyError, TypeError, InputError) as error:
        raise CheckpointError("bad_json", file=FILE, folder=folder.name) from error
