"""The command line in a process of its own, without a model and without the network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from core.common.paths import ROOT


def environment(tmp_path: Path, language: str = "C.UTF-8") -> dict[str, str]:
    """No model, no cached starter and nothing to download one from."""
    places = {"LLAMADECK_MODELS": tmp_path / "models", "LLAMADECK_DATA": tmp_path / "data"}
    caches = {"XDG_CACHE_HOME": tmp_path / "cache", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": tmp_path}
    changed = {name: str(value) for name, value in (places | caches).items()}
    return os.environ | changed | {"LC_ALL": language, "PIP_NO_INDEX": "1"}


def call(tmp_path: Path, *arguments: str, language: str = "C.UTF-8") -> tuple[int, str]:
    """The exit code and what went to stderr."""
    process = subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        cwd=ROOT,
        env=environment(tmp_path, language),
        capture_output=True,
        encoding="utf-8",
    )
    assert "Traceback" not in process.stderr
    return process.returncode, process.stderr.strip()
