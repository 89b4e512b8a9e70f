"""A repository that is quantized: looked at without its weights, fetched by the download's code, removed afterwards."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.common.errors import CheckpointError, DeckError
from core.hub.address import Address
from core.hub.source import Source
from core.quantize import folders
from core.quantize.options import QuantizeOptions
from core.quantize.queue import QuantizeQueue
from core.quantize.target import folder_target, repo_target
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.first_words import ASKED, FakeCheck
from tests.support.hub_standin import HubStandin

REPO = "me/Tiny-1M"
OPTIONS = QuantizeOptions(group_size=32)


class FakeProcess:
    """Stands in for the child process; it fails where it is told to."""

    error: DeckError | None = None

    def __init__(self, folder: Path, device: str) -> None:
        self._folder = folder

    def run(self, tell: Any) -> dict[str, Any]:
        (self._folder / folders.LOG).write_text("log")
        if self.error is not None:
            raise self.error
        make_checkpoint(self._folder / "out", Recipe())
        figures = {"before": {"en": 10.0}, "after": {"en": 10.0}}
        return figures | {"quantizer": "gptqmodel:7.6.0", "rows": 1, "tokens": 1} | ASKED

    def kill(self) -> None:
        """It never takes long."""


class FailingProcess(FakeProcess):
    error = CheckpointError("quantize_no_numbers")


@pytest.fixture
def hub(plain: Path, tmp_path: Path, no_proxy: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandin]:
    shutil.copytree(plain, tmp_path / "hub" / REPO / "main")
    make_checkpoint(tmp_path / "hub" / "me" / "done-GPTQ" / "main", Recipe(num_layers=1))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with HubStandin(tmp_path / "hub") as standin:
        yield standin


def source_at(hub: HubStandin, repo: str = REPO) -> Source:
    return Source(Address(repo, "main"), hub.url)


def test_a_repository_is_looked_at_by_its_headers(hub: HubStandin, plain: Path) -> None:
    target = repo_target(source_at(hub), None)
    assert (target.title, target.repo, target.folder) == ("Tiny-1M", REPO, None)
    assert len(target.model.matrices) == 14
    # Its download has to find room on the disk as well.
    assert target.fetched_bytes == target.model.size_bytes > 0 == folder_target(plain).fetched_bytes


def test_a_repository_that_is_quantized_already_is_refused_before_a_download(hub: HubStandin) -> None:
    with pytest.raises(CheckpointError) as raised:
        repo_target(source_at(hub, "me/done-GPTQ"), None)
    assert raised.value.key == "quantize_already"


def test_a_repository_is_fetched_quantized_and_its_source_removed(hub: HubStandin, models: Path) -> None:
    queue = QuantizeQueue(lambda endpoint: None, FakeProcess, FakeCheck)  # type: ignore[arg-type]
    job = queue.add(repo_target(source_at(hub), None), OPTIONS, "cpu")
    assert job.wait(60)
    queue.close()
    assert job.snapshot().error is None
    assert (models / "Tiny-1M-GPTQ-4bit-32g" / "config.json").is_file()
    assert f"base_model: {REPO}" in (models / "Tiny-1M-GPTQ-4bit-32g" / "README.md").read_text()
    assert [path.name for path in models.iterdir()] == ["Tiny-1M-GPTQ-4bit-32g"]


def test_a_source_stays_where_quantizing_failed_and_goes_with_the_job(hub: HubStandin, models: Path) -> None:
    """Gigabytes should not be fetched twice; a later try, also of another process, takes them."""
    queue = QuantizeQueue(lambda endpoint: None, FailingProcess, FakeCheck)  # type: ignore[arg-type]
    job = queue.add(repo_target(source_at(hub), None), OPTIONS, "cpu")
    assert job.wait(60) and job.phase == "failed"
    queue.close()
    assert [path.name for path in (models / folders.SOURCES).iterdir()] == ["me_Tiny-1M"]
    later = QuantizeQueue(lambda endpoint: None, FakeProcess, FakeCheck)  # type: ignore[arg-type]
    (found,) = later.jobs
    assert (found.phase, found.name) == ("failed", REPO)
    asked = len(hub.requests)
    later.cancel(found.id)
    later.close()
    assert list(models.iterdir()) == [] and len(hub.requests) == asked


def test_a_source_stays_as_long_as_another_job_is_made_of_it(hub: HubStandin, models: Path) -> None:
    """Whoever cancelled the job that waited once took the weights from the one that ran."""
    at_work, go_on = threading.Event(), threading.Event()
    seen: list[bool] = []

    class PatientProcess(FakeProcess):
        def run(self, tell: Any) -> dict[str, Any]:
            at_work.set()
            assert go_on.wait(60)
            seen.append((models / folders.SOURCES / "me_Tiny-1M" / "config.json").is_file())
            return super().run(tell)

    queue = QuantizeQueue(lambda endpoint: None, PatientProcess, FakeCheck)  # type: ignore[arg-type]
    target = repo_target(source_at(hub), None)
    first = queue.add(target, OPTIONS, "cpu")
    second, third = (queue.add(target, replace(OPTIONS, **more), "cpu") for more in ({"bits": 8}, {"group_size": 64}))
    assert at_work.wait(60)
    queue.cancel(second.id)
    go_on.set()
    assert first.wait(60) and third.wait(60)
    queue.close()
    assert (first.phase, second.phase, third.phase) == ("done", "cancelled", "done") and seen == [True, True]
    whole = [one for one in hub.requests if one.path.endswith("/model.safetensors") and one.status == 200]
    assert not (models / folders.SOURCES).exists() and len([one for one in whole if one.method == "GET"]) == 1
