"""The stamp of a finished .venv: what it was made from.

./llamadeck runs this at every start, so it imports little, and only from the standard library.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from core.bootstrap.driver import read_driver
from core.bootstrap.torch_build import TorchBuild
from core.common.paths import ROOT

REQUIREMENTS = "requirements.txt"
STAMP = "llamadeck.json"
DAMAGED = "damaged"
PYTHON = "{}.{}".format(*sys.version_info)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a finished .venv was made from; `root` because the scripts of a moved .venv do not start.

    `packages`: what can be imported from it, by the names in its site-packages.
    """

    requirements: str
    python: str
    root: str
    torch: TorchBuild
    packages: tuple[str, ...] = ()


def wanted_stamp(root: Path, torch: TorchBuild, packages: tuple[str, ...] = ()) -> Stamp:
    """The stamp that a .venv made now by the running Python would get."""
    digest = hashlib.sha256((root / REQUIREMENTS).read_bytes()).hexdigest()
    return Stamp(digest, PYTHON, str(root), torch, packages)


def read_stamp(venv: Path) -> Stamp | None:
    """The stamp of a finished .venv; None where it is missing, half-made or without its Python."""
    if not (venv / "bin" / "python").exists():
        return None
    try:
        data = json.loads((venv / STAMP).read_text("utf-8"))
        packages = tuple(data.get("packages", ()))
        return Stamp(**(data | {"torch": TorchBuild(**data["torch"]), "packages": packages}))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_stamp(venv: Path, stamp: Stamp) -> None:
    part = venv / f"{STAMP}.part"
    part.write_text(json.dumps(asdict(stamp), indent=1), "utf-8")
    os.replace(part, venv / STAMP)


def mark_damaged(venv: Path) -> None:
    """Have the next start put back what is missing from a finished .venv, where this process may write there."""
    stamp = read_stamp(venv)
    if stamp is not None:
        with suppress(OSError):
            write_stamp(venv, replace(stamp, requirements=DAMAGED))


def site_packages(venv: Path, python: str = PYTHON) -> Path:
    return venv / "lib" / f"python{python}" / "site-packages"


def list_packages(venv: Path) -> tuple[str, ...]:
    """What lies in its site-packages, without what only tells of it and changes its name with every version, and
    without what pip left of another version, which it calls "~name"."""
    try:
        names = os.listdir(site_packages(venv))
    except OSError:
        return ()
    changing = re.compile(r"[~_.].*|.*\.(?:dist-info|pth|so)")
    return tuple(sorted(name for name in names if not changing.fullmatch(name)))


def missing_packages(venv: Path, stamp: Stamp) -> set[str]:
    """What was taken out of a finished .venv by hand, or by a disk that was cleaned up."""
    return set(stamp.packages) - set(list_packages(venv))


def is_complete(root: Path) -> bool:
    """Whether .venv is finished, made from what is wanted now, still whole, and its torch runs under the driver."""
    venv = root / ".venv"
    stamp = read_stamp(venv)
    return (
        stamp is not None
        and stamp == wanted_stamp(root, stamp.torch, stamp.packages)
        and not missing_packages(venv, stamp)
        and stamp.torch.is_usable(read_driver(), site_packages(venv))
    )


if __name__ == "__main__":
    sys.exit(0 if is_complete(ROOT) else 1)
