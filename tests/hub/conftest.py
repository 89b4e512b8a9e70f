"""What tests of downloads begin with: a stand-in of the Hub that serves one model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub_models import REPO, make_model
from tests.support.hub_standin import HubStandin


@pytest.fixture(autouse=True)
def no_proxy(no_proxy: None) -> None:
    """For every test here."""


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """The folder that is served as the main branch of REPO."""
    folder = tmp_path / "hub" / REPO / "main"
    make_model(folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, origin: Path) -> Iterator[HubStandin]:
    with HubStandin(tmp_path / "hub") as standin:
        yield standin
