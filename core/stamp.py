"""What a finished .venv was made from; knows not how one is made.

./llamadeck runs it at every start, so it imports little and nothing that has to be installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from core.settings import ROOT
from core.torch_build import TorchBuild, has_gpu

REQUIREMENTS = "requirements.txt"
STAMP = "llamadeck.json"
PYTHON = "{}.{}".format(*sys.version_info)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a finished .venv was made from; `root` because the scripts of a moved .venv do not start."""

    requirements: str
    python: str
    root: str
    torch: TorchBuild


def wanted_stamp(root: Path, torch: TorchBuild) -> Stamp:
    """The stamp that a .venv made now by the running Python would get."""
    digest = hashlib.sha256((root / REQUIREMENTS).read_bytes()).hexdigest()
    return Stamp(digest, PYTHON, str(root), torch)


def read_stamp(venv: Path) -> Stamp | None:
    """The stamp of a finished .venv; None where it is missing, half-made or without its Python."""
    if not (venv / "bin" / "python").exists():
        return None
    try:
        data = json.loads((venv / STAMP).read_text("utf-8"))
        return Stamp(**(data | {"torch": TorchBuild(**data["torch"])}))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_stamp(venv: Path, stamp: Stamp) -> None:
    part = venv / f"{STAMP}.part"
    part.write_text(json.dumps(asdict(stamp), indent=1), "utf-8")
    os.replace(part, venv / STAMP)


def is_complete(root: Path) -> bool:
    """Whether .venv is finished and made from what is wanted now."""
    stamp = read_stamp(root / ".venv")
    return stamp is not None and stamp == wanted_stamp(root, stamp.torch) and stamp.torch.is_good(has_gpu())


if __name__ == "__main__":
    sys.exit(0 if is_complete(ROOT) else 1)
