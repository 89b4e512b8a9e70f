"""The model that tests of the engine's processes load."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.checkpoints import Recipe, make_checkpoint


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_checkpoint(path, Recipe(context_tokens=4096))
    return path
