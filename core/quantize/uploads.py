"""Calibration texts that came through a page: kept by what is in them, for as long as a job or a form needs them."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from core.common.files import write_atomically
from core.common.paths import data_dir

# A form draws itself at each click; one that nobody touched for so long writes its text anew at the next.
IDLE_S = 3600.0


def uploads_folder() -> Path:
    return data_dir() / "calibration"


def keep_upload(content: bytes, suffix: str) -> Path:
    """The file with `content`, which is there afterwards; "used" now. Raises OSError."""
    path = uploads_folder() / f"{hashlib.sha256(content).hexdigest()[:16]}{suffix}"
    if path.exists():
        os.utime(path)
    else:
        write_atomically(path, content)
    return path


def sweep(needed: Iterable[Path | None], now_s: float | None = None) -> None:
    """Remove the texts that are not among `needed` and that no form has used for IDLE_S."""
    kept, limit_s = set(needed), (time.time() if now_s is None else now_s) - IDLE_S
    try:
        paths = list(uploads_folder().iterdir())
    except OSError:
        return
    for path in paths:
        # Somebody else may have removed it, or may have to.
        with suppress(OSError):
            if path not in kept and path.stat().st_mtime < limit_s:
                path.unlink()
