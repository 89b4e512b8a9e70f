"""A models folder and a dashboard without a past, for the tests of the pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st

from tests.support.checkpoints import TEMPLATE, make_checkpoint
from tests.support.pages import LONG_NAME
from ui.shared import resources


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was taught to chat: it has a template."""
    folder = tmp_path_factory.mktemp("made") / "tiny"
    make_checkpoint(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a dashboard of its own, with the fake worker, has the folders `models`, `data` and `characters`."""
    for name in ("models", "data", "characters"):
        monkeypatch.setenv(f"LLAMADECK_{name.upper()}", str(tmp_path / name))
    monkeypatch.setenv("LLAMADECK_WORKER", "tests.support.fake_worker")
    st.cache_resource.clear()
    yield tmp_path
    resources.recorder().close()
    resources.chat_file().close()
    resources.engine().unload()
    st.cache_resource.clear()


@pytest.fixture
def models(home: Path, checkpoint: Path) -> Path:
    """The models folder: two models, one that the engine refuses, one broken folder."""
    folder = home / "models"
    folder.mkdir()
    for name in ("tiny", LONG_NAME, "refused"):
        (folder / name).symlink_to(checkpoint)
    (folder / "broken").mkdir()
    return folder
