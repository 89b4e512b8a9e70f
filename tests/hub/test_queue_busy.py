"""Whether something is fetched, for those who would end the machine: also by another process."""

from __future__ import annotations

from pathlib import Path

from core.hub.folders import ModelFolders, locked
from core.hub.queue import DownloadQueue


def test_a_download_of_another_process_counts_and_one_that_was_left_does_not(tmp_path: Path) -> None:
    queue, folders = DownloadQueue(tmp_path), ModelFolders(tmp_path, "other")
    assert not queue.is_busy
    folders.unfinished.mkdir()
    assert not queue.is_busy, "a download that was broken off may wait for weeks"
    with locked(folders):
        assert queue.is_busy
    assert not queue.is_busy
