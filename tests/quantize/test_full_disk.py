"""A disk that fills in the middle of a job: told as that, with what is free, and not as an exit code and a log.

The log lies on the same disk, so that it could not tell either.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest
from safetensors import SafetensorError

from core.common.errors import DeckError
from core.hub.address import Address
from core.hub.source import Source
from core.quantize import folders
from core.quantize.child import main as child
from core.quantize.job_file import JobFile, write_job
from core.quantize.options import QuantizeOptions
from core.quantize.process import QuantizeProcess

# So torch says it on a full tmpfs.
TORCH_WRITES = RuntimeError(
    "[enforce fail at inline_container.cc:865] . PytorchStreamWriter failed writing file data/0"
)


def ignore(stage: str, fraction: float, **more: int) -> None:
    """Nobody is told."""


@pytest.fixture
def job(models: Path) -> Path:
    folder = models / ".quantize-made"
    folder.mkdir()
    write_job(folder, JobFile("made", models / "plain", QuantizeOptions()))
    return folder


def failing(error: BaseException, cause: BaseException | None = None) -> Any:
    def make(*_: object) -> NoReturn:
        raise error from cause

    return make


@pytest.mark.parametrize(
    ("error", "cause", "free_mib"),
    [
        # A file that was half written is removed at once: then there is room.
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), None, 500),
        (RuntimeError("the layer was not kept"), OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), 500),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), None, 500),
        (TORCH_WRITES, None, 0),
    ],
)
def test_the_process_says_that_the_disk_is_full(
    job: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    cause: BaseException | None,
    free_mib: int,
) -> None:
    monkeypatch.setattr(child, "make", failing(error, cause))
    monkeypatch.setattr(folders, "free_bytes", lambda folder: free_mib << 20)
    told = child.do(job, job, ignore)["error"]
    assert told == {"key": "quantize_disk_full", "params": {"folder": str(job.parent), "free_mib": free_mib}}
    said = DeckError(told["key"], **told["params"]).sentence("en")
    assert f"is full: {free_mib} MiB are free there" in said and "goes on" in said


def test_what_has_another_cause_stays_in_the_log(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "make", failing(TORCH_WRITES))
    monkeypatch.setattr(folders, "free_bytes", lambda folder: 500 << 20)
    with pytest.raises(RuntimeError, match="PytorchStreamWriter"):
        child.do(job, job, ignore)


@pytest.mark.parametrize(("free_mib", "key"), [(0, "quantize_disk_full"), (500, "quantize_died")])
def test_a_thread_that_ends_the_process_without_a_word_is_explained_by_the_disk(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_mib: int, key: str
) -> None:
    """gptqmodel's threads end the process with exit code 1, and their traceback had no room in the log."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    monkeypatch.setattr(folders, "free_bytes", lambda folder: free_mib << 20)
    with pytest.raises(DeckError) as raised:
        QuantizeProcess(job, "cpu").run(lambda message: None)
    assert raised.value.key == key


def test_a_disk_on_which_nothing_can_be_begun_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """models/ is not there yet, and cannot be made."""
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path / "not" / "made"))
    with pytest.raises(DeckError) as raised, folders.errors_explained(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert raised.value.key == "quantize_disk_full" and isinstance(raised.value.params["free_mib"], int)


def test_what_is_needed_what_is_free_and_what_to_free_add_up(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 MiB were needed, 2 were free, and 64 more were to be freed: what the system keeps was not told."""
    monkeypatch.setattr(folders, "free_bytes", lambda folder: (2 << 20) + 5000)
    lack = folders.lack_of_room("made", (1 << 20) + 5)
    assert lack is not None
    found = lack.params
    assert (found["needed_mib"], found["kept_mib"], found["free_mib"], found["more_mib"]) == (2, 64, 2, 64)
    assert all(f"{found[name]} MiB" in lack.sentence("en") for name in found if name != "folder")
    monkeypatch.setattr(folders, "free_bytes", lambda folder: (2 + 64) << 20)
    assert folders.lack_of_room("made", (1 << 20) + 5) is None


def test_a_job_that_goes_on_needs_only_what_is_not_there_yet(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever freed what the rest takes was told to free room for all of it."""
    source = Source(Address("me/plain", "main"), "https://hub.test", "huggingface")
    for folder, size_mib in ((models / ".quantize-made", 70), (models / ".sources" / ".download-me_plain", 20)):
        folder.mkdir(parents=True)
        with open(folder / "part", "wb") as file:
            file.truncate(size_mib << 20)
    monkeypatch.setattr(folders, "free_bytes", lambda folder: (30 + 64) << 20)
    assert folders.lack_of_room("made", 100 << 20) is None
    assert folders.lack_of_room("made", 120 << 20, source) is None
    monkeypatch.setattr(folders, "free_bytes", lambda folder: 64 << 20)
    for lack in (folders.lack_of_room("made", 100 << 20), folders.lack_of_room("made", 120 << 20, source)):
        assert lack is not None and (lack.params["needed_mib"], lack.params["more_mib"]) == (30, 30)
