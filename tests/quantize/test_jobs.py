"""Jobs of quantizing, from the queue to models/: with a process that stands in for the child, and once with it."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.checkpoint.checkpoint import read_checkpoint
from core.common.errors import CheckpointError, DeckError, InputError
from core.library.scan import scan
from core.quantize import folders
from core.quantize.answer import EngineCheck, FirstWords, answer_words
from core.quantize.card import loss_percent, loss_words
from core.quantize.job_file import JobFile, write_job
from core.quantize.options import QuantizeOptions
from core.quantize.process import QuantizeProcess
from core.quantize.progress import StageClock
from core.quantize.queue import QuantizeQueue
from core.quantize.target import folder_target
from core.quantize.uploads import keep_upload
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.first_words import ASKED, FakeCheck

OPTIONS = QuantizeOptions(group_size=32)
RESULT = {
    "before": {"en": 10.0, "zh": 20.0},
    "after": {"en": 10.1, "zh": 20.6},
    "quantizer": "gptqmodel:7.6.0",
    "rows": 64,
    "tokens": 4096,
} | ASKED
Told = Callable[[dict[str, Any]], None]


class FakeProcess:
    """Stands in for the child process: `run` makes a checkpoint, or waits until it is killed."""

    error: DeckError | None = None
    waits = False

    def __init__(self, folder: Path, device: str) -> None:
        self._folder = folder
        self._killed = threading.Event()

    def run(self, tell: Told) -> dict[str, Any]:
        (self._folder / folders.LOG).write_text("log")
        tell({"stage": "quantize", "fraction": 0.5, "layer": 1, "layers": 2})
        at_work.set()
        if self.waits and self._killed.wait(30):
            raise DeckError("quantize_killed", log="")
        if self.error is not None:
            raise self.error
        make_checkpoint(self._folder / "out", Recipe())
        return dict(RESULT)

    def kill(self) -> None:
        self._killed.set()


class WaitingProcess(FakeProcess):
    waits = True


class FailingProcess(FakeProcess):
    error = CheckpointError("quantize_no_numbers")


at_work = threading.Event()


@pytest.fixture(autouse=True)
def nobody_is_at_work() -> None:
    at_work.clear()


@pytest.fixture
def make_queue(models: Path) -> Iterator[Callable[..., QuantizeQueue]]:
    made: list[QuantizeQueue] = []

    def make(start: Any = FakeProcess, make_check: Any = FakeCheck) -> QuantizeQueue:
        made.append(QuantizeQueue(start=start, make_check=make_check))
        return made[-1]

    yield make
    for queue in made:
        queue.close()


def test_a_finished_model_stands_among_the_others(
    make_queue: Callable[..., QuantizeQueue], plain: Path, models: Path
) -> None:
    job = make_queue().add(folder_target(plain), OPTIONS, "cpu")
    assert job.wait(30)
    assert (job.phase, job.snapshot().error, job.snapshot().fraction) == ("done", None, 1.0)
    assert [entry.name for entry in scan()][:1] == ["Tiny-1M-GPTQ-4bit-32g"]
    assert [path.name for path in models.iterdir()] == ["Tiny-1M-GPTQ-4bit-32g"]
    card = (models / "Tiny-1M-GPTQ-4bit-32g" / "README.md").read_text()
    assert "Tiny-1M" in card and "4 bit, group 32" in card and "| English | 10.000 | 10.100 |" in card
    found = json.loads((models / "Tiny-1M-GPTQ-4bit-32g" / "quantize_result.json").read_text("utf-8"))
    assert loss_percent(found) == pytest.approx(2.0)


def test_what_failed_says_why_and_can_be_tried_again(
    make_queue: Callable[..., QuantizeQueue], plain: Path, models: Path
) -> None:
    queue = make_queue(FailingProcess)
    job = queue.add(folder_target(plain), OPTIONS, "cpu")
    assert job.wait(30)
    error = job.snapshot().error
    assert job.phase == "failed" and error is not None and error.key == "quantize_no_numbers"
    (left,) = job.snapshot().left
    assert left.folder == folders.job_folder(job.id) and left.num_bytes > 0
    assert scan() == [] or not [entry for entry in scan() if entry.folder.parent == models]
    queue.forget(job.id)
    assert (queue.jobs, list(models.iterdir())) == ((), [])


def test_a_cancelled_job_leaves_nothing(make_queue: Callable[..., QuantizeQueue], plain: Path, models: Path) -> None:
    queue = make_queue(WaitingProcess)
    job = queue.add(folder_target(plain), OPTIONS, "cpu")
    assert at_work.wait(30)
    assert (job.snapshot().layer, job.snapshot().layers) == (1, 2)
    queue.cancel(job.id)
    assert job.wait(30)
    assert (job.phase, list(models.iterdir())) == ("cancelled", [])


def test_a_paused_job_goes_on_in_a_later_process(
    make_queue: Callable[..., QuantizeQueue], plain: Path, models: Path
) -> None:
    first = make_queue(WaitingProcess)
    job = first.add(folder_target(plain), OPTIONS, "cpu")
    assert at_work.wait(30) and job.can_pause
    first.pause(job.id)
    assert job.wait(30) and job.phase == "paused"
    later = make_queue()
    (found,) = later.jobs
    assert (found.id, found.phase, found.file) == (job.id, "paused", job.file)
    later.resume(found.id)
    assert found.wait(30) and found.phase == "done"
    assert first.jobs == ()


def test_one_job_runs_at_a_time_and_the_next_waits(make_queue: Callable[..., QuantizeQueue], plain: Path) -> None:
    queue = make_queue(WaitingProcess)
    first = queue.add(folder_target(plain), OPTIONS, "cpu")
    second = queue.add(folder_target(plain), QuantizeOptions(8, 32), "cpu")
    assert at_work.wait(30)
    assert (first.phase, second.phase) == ("running", "queued")
    with pytest.raises(InputError) as raised:
        queue.add(folder_target(plain), OPTIONS, "cpu")
    assert raised.value.key == "quantize_running"
    queue.cancel(second.id)
    assert second.phase == "cancelled"


@pytest.mark.parametrize(
    ("found", "key", "words"),
    [
        (FirstWords("A man.\nOr not."), "answer", {"question": "Who?", "answer": "A man. Or not."}),
        (FirstWords(error=DeckError("no_words", model="m")), "answer_bad", None),
        (FirstWords(error=DeckError("nothing_loaded"), was_tried=False), "answer_untried", None),
    ],
)
def test_what_the_result_says_is_told_and_changes_nothing(
    make_queue: Callable[..., QuantizeQueue], plain: Path, models: Path, found: FirstWords, key: str, words: Any
) -> None:
    class Check(FakeCheck):
        pass

    Check.found = found
    job = make_queue(FakeProcess, Check).add(folder_target(plain), OPTIONS, "cpu")
    assert job.wait(30) and job.phase == "done"
    result = job.snapshot().result
    assert result is not None
    said = answer_words(result, OPTIONS, "en")
    assert said[0] == key and (words is None or said[1] == words)
    assert (words is not None) or said[1]["reason"].endswith(".")
    assert [path.name for path in models.iterdir()] == ["Tiny-1M-GPTQ-4bit-32g"]


@pytest.mark.parametrize(
    ("options", "after", "advice"),
    [
        (QuantizeOptions(8, 32), 10.0, "most likely does the same"),
        (QuantizeOptions(4, 128), 10.1, "most likely does the same"),
        (QuantizeOptions(8, 32), 20.0, "Nothing finer is offered"),
        (QuantizeOptions(8, -1), 20.0, "quantize in smaller groups"),
        (QuantizeOptions(4, 32), 20.0, "quantize to 8 bit."),
        (QuantizeOptions(4, 64), 20.0, "quantize to 8 bit or in smaller groups"),
        (QuantizeOptions(4, 64), None, "quantize to 8 bit or in smaller groups"),
    ],
)
def test_finer_numbers_are_advised_only_where_rougher_ones_may_be_why_it_is_silent(
    options: QuantizeOptions, after: float | None, advice: str
) -> None:
    """8 bit in groups of 32 without any loss were told to be made in 8 bit or smaller groups."""
    figures = {"before": {"en": 10.0}, "after": {"en": after}} if after else {"before": {}, "after": {}}
    silent = FirstWords(error=DeckError("no_words", model="m"))
    key, words = answer_words({**figures, **ASKED, "first_words": silent}, options, "en")
    assert key == "answer_bad" and advice in words["advice"] and "8 bit" not in words["reason"]


def test_a_model_that_guesses_is_told_as_that_and_not_by_what_it_lost(
    make_queue: Callable[..., QuantizeQueue], plain: Path, models: Path
) -> None:
    """One of random weights was told to lose 0.3 %, as if it had anything to lose."""

    class Guessing(FakeProcess):
        def run(self, tell: Told) -> dict[str, Any]:
            return super().run(tell) | {"before": {"en": 384.4, "zh": 391.0}, "after": {"en": 385.6, "zh": 390.0}}

    job = make_queue(Guessing).add(folder_target(plain), OPTIONS, "cpu")
    assert job.wait(30)
    result = job.snapshot().result
    assert result is not None and loss_words(result) == ("loss_guessing", {"perplexity": "384.4", "count": "384"})
    assert "guesses among its 384 tokens" in (models / job.id / "README.md").read_text()
    assert loss_words(result | {"before": {"en": 40.0, "zh": 391.0}})[0] == "loss"


def test_a_model_whose_class_cannot_be_measured_is_kept(
    make_queue: Callable[..., QuantizeQueue], plain: Path, models: Path
) -> None:
    """Hours of quantizing were thrown away."""

    class Unmeasured(FakeProcess):
        def run(self, tell: Told) -> dict[str, Any]:
            return super().run(tell) | {"before": {}, "after": {}, "unmeasured": "KeyError: 'x'"}

    job = make_queue(Unmeasured).add(folder_target(plain), OPTIONS, "cpu")
    assert job.wait(30)
    result = job.snapshot().result
    assert result is not None and loss_words(result) == ("loss_unmeasured", {"why": "KeyError: 'x'"})
    assert "perplexity" not in (models / job.id / "README.md").read_text()


def test_a_job_is_cancelled_while_the_result_is_asked(
    make_queue: Callable[..., QuantizeQueue], plain: Path, models: Path
) -> None:
    class SlowCheck(FakeCheck):
        waits = True
        at_work = threading.Event()

    queue = make_queue(FakeProcess, SlowCheck)
    job = queue.add(folder_target(plain), OPTIONS, "cpu")
    assert SlowCheck.at_work.wait(30) and job.snapshot().stage == "answer"
    queue.cancel(job.id)
    assert job.wait(30)
    assert (job.phase, list(models.iterdir())) == ("cancelled", [])


def test_the_list_can_be_read_while_a_job_is_written_down(
    make_queue: Callable[..., QuantizeQueue], plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that hangs kept every page waiting. A second one who adds the same job waits, and hears that it runs."""
    queue = make_queue(WaitingProcess)
    is_writing, go_on = threading.Event(), threading.Event()

    def slow(folder: Path, file: JobFile) -> None:
        is_writing.set()
        assert go_on.wait(30)
        write_job(folder, file)

    monkeypatch.setattr("core.quantize.queue.write_job", slow)
    refused: list[str] = []

    def add() -> None:
        try:
            queue.add(folder_target(plain), OPTIONS, "cpu")
        except InputError as error:
            refused.append(error.key)

    threads = [threading.Thread(target=add) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert is_writing.wait(30)
    assert queue.jobs == ()
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert [job.id for job in queue.jobs] == ["Tiny-1M-GPTQ-4bit-32g"] and refused == ["quantize_running"]


def test_uploaded_texts_go_once_nobody_needs_them(
    make_queue: Callable[..., QuantizeQueue], plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a job that rests stays, and so does one that a form was drawn with within the hour."""
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path / "data"))
    text = " ".join(f"word {number} of a text that is long enough" for number in range(2000)).encode()
    own, old, new = (keep_upload(text + more, ".txt") for more in (b"1", b"2", b"3"))
    for path in (own, old):
        os.utime(path, (0, 0))
    queue = make_queue(WaitingProcess)
    job = queue.add(folder_target(plain), QuantizeOptions(group_size=32, calibration=own), "cpu")
    assert at_work.wait(30)
    queue.pause(job.id)
    assert job.wait(30)
    other = queue.add(folder_target(plain), QuantizeOptions(8, 32), "cpu")
    queue.cancel(other.id)
    assert other.wait(30) and own.exists() and not old.exists() and new.exists()
    queue.cancel(job.id)
    assert job.wait(30) and not own.exists() and new.exists()
    os.utime(new, (0, 0))
    assert keep_upload(text + b"3", ".txt") == new and new.stat().st_mtime > 0


def test_another_process_keeps_its_job(make_queue: Callable[..., QuantizeQueue], plain: Path) -> None:
    queue = make_queue()
    with folders.locked("Tiny-1M-GPTQ-4bit-32g"):
        with pytest.raises(DeckError) as raised:
            queue.add(folder_target(plain), OPTIONS, "cpu")
        assert raised.value.key == "quantize_elsewhere"
        assert queue.jobs == ()


def test_a_job_is_not_called_paused_while_another_process_works_at_it(
    make_queue: Callable[..., QuantizeQueue], plain: Path
) -> None:
    queue = make_queue(WaitingProcess)
    job = queue.add(folder_target(plain), OPTIONS, "cpu")
    queue.pause(job.id)
    assert job.wait(30) and [one.phase for one in queue.jobs] == ["paused"]
    with folders.locked(job.id):
        assert queue.jobs == ()
    assert [(one.id, one.phase) for one in queue.jobs] == [(job.id, "paused")]


def test_what_is_wrong_is_said_before_anything_is_begun(
    make_queue: Callable[..., QuantizeQueue], plain: Path, adapter: Path, models: Path, tmp_path: Path
) -> None:
    queue = make_queue(WaitingProcess)
    few = tmp_path / "few.txt"
    few.write_text("only three words")
    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    wrong = json.loads((other / "adapter_config.json").read_text()) | {"r": 0}
    (other / "adapter_config.json").write_text(json.dumps(wrong))
    for options, key in (
        (QuantizeOptions(group_size=128), "quantize_group_fits"),
        (QuantizeOptions(group_size=32, calibration=few), "calibration_short"),
        (QuantizeOptions(group_size=32, adapters=(other,)), "adapter_rank"),
    ):
        job = queue.add(folder_target(plain), options, "cpu")
        assert job.wait(30)
        error = job.snapshot().error
        assert error is not None and error.key == key
        queue.forget(job.id)
    assert list(models.iterdir()) == []


def test_a_disk_without_room_is_told_before(
    make_queue: Callable[..., QuantizeQueue], plain: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "free_bytes", lambda folder: 2 << 20)
    job = make_queue(WaitingProcess).add(folder_target(plain), OPTIONS, "cpu")
    assert job.wait(30)
    error = job.snapshot().error
    assert error is not None and error.key == "quantize_space"
    assert list(models.iterdir()) == []


@pytest.mark.parametrize(
    ("log", "script", "key"),
    [
        ("OSError: [Errno 28] No space left on device", "exit 1", "quantize_disk_full"),
        ("torch.OutOfMemoryError: CUDA out of memory.", "exit 1", "quantize_vram_full"),
        ("RuntimeError: can't allocate memory: you tried to", "exit 1", "no_memory"),
        ("what else", "exit 3", "quantize_died"),
        ("", "kill -9 $$", "quantize_killed"),
        ("", "kill -BUS $$", "quantize_file_lost"),
    ],
)
def test_the_end_of_a_process_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str, script: str, key: str
) -> None:
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\necho "{log}" >&2\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    with pytest.raises(DeckError) as raised:
        QuantizeProcess(tmp_path, "cpu").run(lambda message: None)
    assert raised.value.key == key


def test_what_is_left_is_counted_by_layers_from_where_a_job_began() -> None:
    now = 100.0
    clock = StageClock(lambda: now)
    clock.take("before", 1.0)
    assert clock.left_s is None
    clock.take("quantize", 0.0)
    now = 105.0
    clock.take("quantize", 0.5, 6, 10)
    assert clock.left_s is None
    now = 115.0
    clock.take("quantize", 0.6, 7, 10)
    assert (clock.layer_s, clock.left_s) == (pytest.approx(10.0), pytest.approx(40.0))
    now = 120.0
    assert clock.left_s == pytest.approx(35.0)
    before = clock.fraction
    clock.take("quantize", 0.1, 1, 10)
    assert clock.fraction == before


@pytest.mark.engine
def test_a_real_model_and_two_adapters_become_a_gptq_checkpoint(
    make_queue: Callable[..., QuantizeQueue], plain: Path, adapter: Path, patterned_adapter: Path, models: Path
) -> None:
    """The real child process, from float16 to a checkpoint that the engine takes."""
    options = QuantizeOptions(4, 32, adapters=(adapter, patterned_adapter))
    job = make_queue(QuantizeProcess, EngineCheck).add(folder_target(plain), options, "cpu")
    assert job.wait(250)
    assert job.snapshot().error is None
    name = "Tiny-1M-pirate-poet-GPTQ-4bit-32g"
    found = read_checkpoint(models / name)
    found.require_runs()
    assert (found.quantization_label, len(found.matrices)) == ("4 bit, group 32", 14)
    assert "offload" not in (models / name / "config.json").read_text()
    result = job.snapshot().result
    assert result is not None and result["layers"] == 2
    loss = loss_percent(result)
    assert loss is not None and abs(loss) < 50
    assert "pirate" in (models / name / "README.md").read_text()
    # A model of random weights says something, and what it says is no text of anybody's.
    assert result["first_words"].error is None and result["first_words"].text
    assert [path.name for path in models.iterdir()] == [name]
