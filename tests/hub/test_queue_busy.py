"""What the queue of downloads knows of models and adapters on disk, also of other processes' downloads."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.hub.address import parse_address
from core.hub.folders import ModelFolders, locked, model_folders, remember
from core.hub.queue import DownloadQueue
from core.hub.source import Source


@pytest.mark.parametrize("kind", ["models", "adapters"])
def test_a_download_of_another_process_counts_and_one_that_was_left_does_not(tmp_path: Path, kind: str) -> None:
    queue, folders = DownloadQueue(tmp_path / "models"), ModelFolders(tmp_path / kind, "other")
    assert not queue.is_busy
    folders.unfinished.mkdir(parents=True)
    assert not queue.is_busy, "a download that was broken off may wait for weeks"
    with locked(folders):
        assert queue.is_busy
    assert not queue.is_busy


def test_a_model_and_an_adapter_that_are_called_alike_are_two_downloads(tmp_path: Path) -> None:
    source = Source(parse_address("somebody/pirate"), "https://hub.invalid")
    for kind in ("models", "adapters"):
        (tmp_path / kind).mkdir()
        remember(model_folders(tmp_path / kind, source), source)
    queue = DownloadQueue(tmp_path / "models")
    model, adapter = queue.jobs
    assert (model.id, adapter.id) == ("somebody_pirate", "adapters/somebody_pirate")
    assert (model.is_adapter, adapter.is_adapter) == (False, True)
    queue.cancel(adapter.id)
    left = [path.parent.name for path in tmp_path.glob("*/.download-somebody_pirate")]
    assert left == ["models"]
