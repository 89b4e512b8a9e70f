"""What the tests of downloads share: a model that is large enough to be cut, and short patience."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from core.hub.address import parse_address
from core.hub.retry import TransferLimits
from core.hub.source import Source
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.hub_standin import HubStandin

REPO = "some/tiny-GPTQ"
FOLDER = "some_tiny-GPTQ"
WEIGHTS = "model.safetensors"
MIB = 1 << 20
# A person waits a minute for a network that comes back; a test does not.
QUICK = TransferLimits(connect_s=5.0, stall_s=0.3, tries=4, manifest_tries=2, first_wait_s=0.01, max_wait_s=0.02)


def make_model(folder: Path, num_mib: int = 3, seed: int = 0) -> None:
    """A checkpoint whose weights have `num_mib` MiB and a little more, of which most is the embedding and the head."""
    recipe = Recipe(num_layers=1, seed=seed)
    make_checkpoint(folder, replace(recipe, vocabulary=num_mib * MIB // (2 * 2 * recipe.hidden)))


def source_at(hub: HubStandin, name: str = REPO) -> Source:
    return Source(parse_address(name), hub.url)


def hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file that is no record, by name."""
    paths = (path for path in folder.iterdir() if not path.name.startswith("."))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


# Fixtures -------------------------------------------------------------------------------------------------------------


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
