"""A job that failed under a command stands as failed on the page, and says why; the command says so too.

It stood there as paused, as if somebody had stopped it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.common.errors import DeckError
from core.quantize import folders
from core.quantize.job import QuantizeJob
from core.quantize.last_failure import FILE, ROOM_BYTES, forget_failure, keep_failure, read_failure
from core.quantize.options import QuantizeOptions
from core.quantize.queue import QuantizeQueue
from core.quantize.target import folder_target
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.first_words import ASKED, FakeCheck

OPTIONS = QuantizeOptions(group_size=32)
NAME = "Tiny-1M-GPTQ-4bit-32g"
FULL = DeckError("quantize_disk_full", folder="/models", free_mib=0)


class FakeProcess:
    """Stands in for the child process: it fails for the next reason, or makes a checkpoint where there is none."""

    errors: list[DeckError] = []
    go_on = threading.Event()

    def __init__(self, folder: Path, device: str) -> None:
        self._folder = folder

    def run(self, tell: Any) -> dict[str, Any]:
        (self._folder / folders.LOG).write_text("log")
        if self.errors:
            raise self.errors.pop(0)
        assert self.go_on.wait(30)
        make_checkpoint(self._folder / "out", Recipe())
        figures = {"before": {"en": 10.0}, "after": {"en": 10.0}}
        return figures | {"quantizer": "gptqmodel:7.6.0", "rows": 1, "tokens": 1} | ASKED

    def kill(self) -> None:
        self.go_on.set()


@pytest.fixture
def make_queue(models: Path) -> Iterator[Callable[[], QuantizeQueue]]:
    """Each is a process of its own, as far as a job can tell."""
    made: list[QuantizeQueue] = []
    FakeProcess.errors = []
    FakeProcess.go_on.set()

    def make() -> QuantizeQueue:
        made.append(QuantizeQueue(start=FakeProcess, make_check=FakeCheck))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for queue in made:
        queue.close()


def fail(queue: QuantizeQueue, plain: Path, *errors: DeckError) -> QuantizeJob:
    FakeProcess.errors = list(errors)
    job = queue.add(folder_target(plain), OPTIONS, "cpu")
    assert job.wait(30) and job.phase == "failed"
    return job


def seen(queue: QuantizeQueue) -> tuple[str, str]:
    """The one job's phase, and why it failed."""
    (job,) = queue.jobs
    return job.phase, str(job.snapshot().error or "")


def test_another_process_sees_why_a_job_failed_and_what_it_left(
    make_queue: Callable[[], QuantizeQueue], plain: Path, models: Path
) -> None:
    fail(make_queue(), plain, FULL)
    page = make_queue()
    assert seen(page) == ("failed", str(FULL))
    (job,) = page.jobs
    assert [one.folder for one in job.snapshot().left] == [models / f".quantize-{NAME}"]
    page.resume(job.id)
    assert job.wait(30) and job.phase == "done" and [path.name for path in models.iterdir()] == [NAME]


def test_the_page_follows_what_a_command_does_with_a_job(
    make_queue: Callable[[], QuantizeQueue], plain: Path, models: Path
) -> None:
    command, page = make_queue(), make_queue()
    fail(command, plain, FULL)
    assert seen(page) == ("failed", str(FULL))
    lost = DeckError("quantize_no_numbers")
    fail(command, plain, lost)
    assert seen(page) == ("failed", str(lost))
    # It goes on: nothing is told of the last time.
    FakeProcess.go_on.clear()
    job = command.add(folder_target(plain), OPTIONS, "cpu")
    while job.snapshot().stage != "start" or read_failure(folders.job_folder(NAME)) is not None:
        assert not job.wait(0.02)
    assert page.jobs == ()
    FakeProcess.go_on.set()
    assert job.wait(30) and job.phase == "done" and page.jobs == ()


def test_a_failed_job_that_another_process_finished_leaves_the_list(
    make_queue: Callable[[], QuantizeQueue], plain: Path, models: Path
) -> None:
    fail(make_queue(), plain, FULL)
    page, command = make_queue(), make_queue()
    assert seen(page)[0] == "failed"
    assert command.add(folder_target(plain), OPTIONS, "cpu").wait(30)
    assert page.jobs == () and (models / NAME).is_dir()


def test_a_job_that_is_refused_because_another_works_at_it_leaves_it_alone(
    make_queue: Callable[[], QuantizeQueue], plain: Path
) -> None:
    """Its folder was removed under the one that had just begun, and had no log yet."""
    fail(make_queue(), plain, FULL)
    page = make_queue()
    (job,) = page.jobs
    folder = folders.job_folder(NAME)
    with folders.locked(NAME):
        (folder / folders.LOG).unlink()
        forget_failure(folder)
        page.resume(job.id)
        assert job.wait(30)
        error = job.snapshot().error
        assert error is not None and error.key == "quantize_elsewhere"
        assert folder.is_dir() and read_failure(folder) is None


def test_a_failed_job_of_another_process_can_be_dismissed(
    make_queue: Callable[[], QuantizeQueue], plain: Path, models: Path
) -> None:
    fail(make_queue(), plain, FULL)
    page = make_queue()
    page.forget(page.jobs[0].id)
    assert page.jobs == () and list(models.iterdir()) == []


def test_a_fault_of_the_program_is_kept_as_well(
    make_queue: Callable[[], QuantizeQueue], plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr("core.quantize.job.read_checkpoint", broken)
    queue = make_queue()
    job = queue.add(folder_target(plain), OPTIONS, "cpu")
    assert job.wait(30) and job.phase == "failed"
    assert seen(make_queue()) == seen(queue) and "KeyError: 'x'" in seen(queue)[1]


def test_an_old_folder_without_a_reason_is_paused(make_queue: Callable[[], QuantizeQueue], plain: Path) -> None:
    fail(make_queue(), plain, FULL)
    (folders.job_folder(NAME) / FILE).unlink()
    assert seen(make_queue()) == ("paused", "")


def test_the_reason_has_its_room_before_the_disk_fills(tmp_path: Path) -> None:
    """A disk that filled up is a reason itself. The file is neither longer nor another one with the reason in it."""
    forget_failure(tmp_path)
    before = (tmp_path / FILE).stat()
    assert read_failure(tmp_path) is None
    keep_failure(tmp_path, FULL)
    after = (tmp_path / FILE).stat()
    assert (after.st_ino, after.st_size, after.st_blocks) == (before.st_ino, ROOM_BYTES, before.st_blocks)
    keep_failure(tmp_path, DeckError("quantize_fault", model="x" * 900, why="字\udcff" * 400))
    found = read_failure(tmp_path)
    assert found is not None and found.key == "quantize_fault" and str(found.params["why"]).startswith("字?字")
    keep_failure(tmp_path, FULL)
    assert str(read_failure(tmp_path)) == str(FULL)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        "{}",
        json.dumps({"key": "quantize_disk_full", "params": {"folder": "x"}}),
        json.dumps({"key": "quantize_disk_full", "params": ["x"]}),
        json.dumps({"key": "no_such_key", "params": {}}),
        json.dumps({"key": ["x"], "params": {}}),
    ],
)
def test_what_tells_no_reason_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    assert read_failure(tmp_path) is None
