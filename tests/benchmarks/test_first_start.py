"""What the benchmark of a first start copies: all that a clone has, and nothing that was made in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import first_start_on_gpu
from benchmarks.first_start_on_gpu import left_out


def test_only_the_roots_own_folders_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A package called ui/shared was missing in the copy, which said that the installation was damaged."""
    monkeypatch.setattr(first_start_on_gpu, "ROOT", tmp_path)
    names = ["core", "data", "models", "shared", ".venv", ".venv.lock", "__pycache__"]
    assert left_out(str(tmp_path), names) == {"data", "models", "shared", ".venv", ".venv.lock", "__pycache__"}
    assert left_out(str(tmp_path / "ui"), names) == {"__pycache__"}
