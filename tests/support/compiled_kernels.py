"""Keeps what g++ makes of the kernels for a CPU: for all files of a run, its processes, and the runs after it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from core.common.paths import cache_dir

# Every processor of this kind that torch runs on converts half precision itself; without, a function does, slowly.
OPTIONS = ("-std=c++17", "-w", "-ffp-contract=off", *(["-mf16c"] if platform.machine() == "x86_64" else []))
MOST_AGE_S = 14 * 24 * 3600


def kept_library(parts: Sequence[str], make: Callable[[Path], None]) -> ctypes.CDLL:
    """The library that `make` writes into a file, unless one of the same parts is there: all that the result depends
    on but the compiler."""
    key = hashlib.sha256("\0".join([compiler(), *OPTIONS, *parts]).encode()).hexdigest()
    file = folder() / f"{key}.so"
    if file.exists():
        os.utime(file)
    else:
        # Another process may be making the same.
        with tempfile.TemporaryDirectory(dir=file.parent) as own:
            make(Path(own) / file.name)
            (Path(own) / file.name).replace(file)
    return ctypes.CDLL(str(file))


@cache
def folder() -> Path:
    """Without what no run has used for two weeks."""
    folder = cache_dir() / "tests" / "kernels-on-cpu"
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.so"):
        if time.time() - file.stat().st_mtime > MOST_AGE_S:
            file.unlink(missing_ok=True)
    return folder


@cache
def compiler() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
