"""Your own model on the page Download: the form, its plan and refusals, and the job beside the downloads."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from core.common.errors import CheckpointError, DeckError
from core.quantize import folders
from core.quantize.options import QuantizeOptions
from core.quantize.queue import QuantizeQueue
from core.quantize.target import folder_target
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.first_words import ASKED, FakeCheck
from tests.support.pages import click, open_tab, run, words
from tests.support.plain_models import make_adapter, make_plain
from tests.support.widgets import named
from ui.shared import resources
from ui.shared.markdown import escape

RUNS = 300


class FakeProcess:
    """Stands in for the child process: it makes a checkpoint when it may go on, or fails."""

    error: DeckError | None = None
    go_on = threading.Event()

    def __init__(self, folder: Path, device: str) -> None:
        self._folder = folder
        self._killed = False

    def run(self, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        (self._folder / "build.log").write_text("log")
        tell({"stage": "quantize", "fraction": 0.25, "layer": 1, "layers": 2})
        assert self.go_on.wait(60)
        if self._killed:
            raise DeckError("quantize_killed", log="")
        if self.error is not None:
            raise self.error
        make_checkpoint(self._folder / "out", Recipe())
        figures = {"before": {"en": 10.0}, "after": {"en": 10.2}}
        return figures | {"quantizer": "gptqmodel:7.6.0", "rows": 64, "tokens": 4096} | ASKED

    def kill(self) -> None:
        self._killed = True
        self.go_on.set()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_adapter(make_plain(folder / "Tiny-1M"), folder / "pirate")
    return folder


@pytest.fixture
def models(home: Path, made: Path, no_proxy: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A dashboard with a 16-bit model in models/ and an adapter, whose jobs are made by the stand-in."""
    shutil.copytree(made / "Tiny-1M", home / "models" / "Tiny-1M")
    shutil.copytree(made / "pirate", home / "adapters" / "pirate")
    monkeypatch.setenv("LLAMADECK_ADAPTERS", str(home / "adapters"))
    monkeypatch.setenv("LLAMADECK_CPU", "1")
    FakeProcess.go_on.clear()
    FakeProcess.error = None
    queue = QuantizeQueue(start=FakeProcess, make_check=FakeCheck)  # type: ignore[arg-type]
    monkeypatch.setattr(resources.quantizing, "__wrapped__", lambda: queue, raising=False)
    for place in ("ui.download.own", "ui.download.own_jobs", "ui.download.jobs"):
        monkeypatch.setattr(f"{place}.quantizing", lambda: queue)
    yield home / "models"
    FakeProcess.go_on.set()
    queue.close()


def open_form(locale: str = "en-US", model: str = "Tiny-1M") -> AppTest:
    tab = open_tab("1_Download", locale)
    named(tab.segmented_control, "download_section_choice").set_value("own")
    run(tab)
    if model == "Tiny-1M":
        return settle(tab)
    tab.selectbox(key="own_target").set_value("/")
    run(tab).text_input(key="own_typed").set_value(model)
    return settle(run(tab))


def settle(tab: AppTest) -> AppTest:
    """Until what is looked at in the background is there."""
    for _ in range(RUNS):
        if "Looking at the model" not in words(tab) and "正在查看" not in words(tab):
            return tab
        run(tab)
    raise AssertionError("it looks for ever")


def until(tab: AppTest, text: str) -> AppTest:
    for _ in range(RUNS):
        if text in read(tab):
            return tab
        run(tab)
    raise AssertionError(read(tab))


def read(tab: AppTest) -> str:
    """What stands on the page, the words beside bars too."""
    return "\n".join([words(tab), *(str(bar.proto.text) for bar in tab.get("progress"))])


def test_a_result_whose_name_is_taken_gets_another_name(models: Path) -> None:
    tab = group(open_form(), 32)
    (models / "Tiny-1M-GPTQ-4bit-32g").mkdir()
    assert "choose another name" in "\n".join(one.value for one in run(tab).error)
    tab.text_input(key="own_name").set_value("mine")
    assert not run(tab).error and "**mine**" in words(tab)


def test_a_model_that_is_not_quantized_leads_to_the_form_with_it(models: Path) -> None:
    make_plain(models / "Another-1M")
    tab = settle(click(open_tab("2_Load_Model"), "load_quantize_Tiny-1M"))
    assert named(tab.segmented_control, "download_section_choice").value == "own"
    assert tab.selectbox(key="own_target").value == "Tiny-1M"


def group(tab: AppTest, size: int) -> AppTest:
    tab.segmented_control(key="own_group").set_value(size)
    return settle(run(tab))


def keys(tab: AppTest) -> list[str]:
    return [str(button.key) for button in tab.button]


@pytest.mark.parametrize(("locale", "needs"), [("en-US", "of disk meanwhile"), ("zh-CN", "期间占用")])
def test_the_plan_and_the_verdict_come_before_the_button(models: Path, locale: str, needs: str) -> None:
    tab = group(open_form(locale), 32)
    assert needs in words(tab) and escape(f"{models}/Tiny-1M-GPTQ-4bit-32g") in words(tab)
    assert "own_begin" in keys(tab)


def test_the_plan_tells_of_a_disk_that_is_too_small(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "free_bytes", lambda folder: 3 << 20)
    tab = group(open_form(), 32)
    assert "has too little room" in "\n".join(one.value for one in tab.warning)
    monkeypatch.setattr(folders, "free_bytes", lambda folder: 1 << 40)
    assert not run(tab).warning


def test_a_group_that_fits_no_matrix_is_refused_in_words(models: Path) -> None:
    tab = group(open_form(), 128)
    assert "cannot be quantized in groups of 128" in words(tab)
    assert "own_begin" not in keys(tab)


def test_a_text_that_is_too_short_to_calibrate_on_is_refused_before_the_button(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job began, and then said so."""
    (tmp_path / "own.txt").write_text("three words only")
    monkeypatch.setattr("ui.download.own._choose_calibration", lambda: tmp_path / "own.txt")
    tab = until(group(open_form(), 32), "too few to calibrate on")
    assert "own_begin" not in keys(tab)
    (tmp_path / "long.txt").write_text("three words only " * 2000)
    monkeypatch.setattr("ui.download.own._choose_calibration", lambda: tmp_path / "long.txt")
    until(tab, "of disk meanwhile")
    assert "own_begin" in keys(tab)


def test_what_is_typed_and_is_nothing_is_refused_in_words(models: Path) -> None:
    tab = open_form(model="nothing")
    assert "There is no folder nothing" in words(tab)
    assert "/nowhere/at/all" in words(open_form(model="/nowhere/at/all"))
    for typed in ("~nobody-of-this-name/x", f"/{'x' * 5000}"):
        assert "There is no folder" in words(open_form(model=typed))


def test_a_path_with_dots_is_followed_before_its_name_is_used(models: Path) -> None:
    (models / "Tiny-1M" / "runs").mkdir()
    tab = group(open_form(model=f"{models}/Tiny-1M/runs/.."), 32)
    assert "**Tiny-1M-GPTQ-4bit-32g**" in words(tab) and ".." not in words(tab)


def test_an_adapter_is_chosen_by_name_and_is_in_the_results_name(models: Path) -> None:
    tab = group(open_form(), 32)
    tab.multiselect(key="own_adapters").set_value(["pirate"])
    assert "Tiny-1M-pirate-GPTQ-4bit-32g" in words(settle(run(tab)))
    assert "first, in this order: pirate. It is calibrated on the set that ships." in words(tab)


def test_a_job_runs_beside_the_downloads_and_says_what_was_lost(models: Path) -> None:
    tab = click(group(open_form(), 32), "own_begin")
    assert named(tab.segmented_control, "download_section_choice").value == "jobs"
    until(tab, "layer 1 of 2")
    assert "own_pause_Tiny-1M-GPTQ-4bit-32g" in keys(tab)
    FakeProcess.go_on.set()
    until(tab, "It loses 2.0 %")
    assert "Asked “Who?”, it says: Nobody." in words(tab)
    assert (models / "Tiny-1M-GPTQ-4bit-32g" / "config.json").is_file()
    assert "own_load_Tiny-1M-GPTQ-4bit-32g" in keys(tab)
    click(tab, "own_dismiss_Tiny-1M-GPTQ-4bit-32g")
    assert "own_entry" not in " ".join(keys(tab)) and "It loses" not in words(tab)


def test_another_tab_sees_the_job_and_can_cancel_it(models: Path) -> None:
    until(click(group(open_form(), 32), "own_begin"), "layer 1 of 2")
    other = open_tab("1_Download")
    named(other.segmented_control, "download_section_choice").set_value("jobs")
    until(run(other), "layer 1 of 2")
    click(other, "own_cancel_Tiny-1M-GPTQ-4bit-32g")
    until(other, "Cancelled")
    assert [path.name for path in models.iterdir()] == ["Tiny-1M"]


def test_what_failed_says_why_and_can_be_tried_again(models: Path) -> None:
    FakeProcess.error = CheckpointError("quantize_no_numbers")
    FakeProcess.go_on.set()
    tab = until(click(group(open_form(), 32), "own_begin"), "computes no numbers")
    assert escape(f"{models}/.quantize-Tiny-1M-GPTQ-4bit-32g") in words(tab) and "*Dismiss* deletes it" in words(tab)
    FakeProcess.error = None
    until(click(tab, "own_resume_Tiny-1M-GPTQ-4bit-32g"), "It loses 2.0 %")


def test_a_job_that_failed_under_a_command_stands_as_failed_and_says_why(models: Path) -> None:
    """It stood there as paused and starting, with not a word of what had happened."""
    target = folder_target(models / "Tiny-1M")
    FakeProcess.error = CheckpointError("quantize_no_numbers")
    FakeProcess.go_on.set()
    command = QuantizeQueue(start=FakeProcess, make_check=FakeCheck)  # type: ignore[arg-type]
    assert command.add(target, QuantizeOptions(group_size=32), "cpu").wait(30)
    command.close()
    FakeProcess.error = None
    tab = open_tab("1_Download")
    named(tab.segmented_control, "download_section_choice").set_value("jobs")
    tab = until(run(tab), "computes no numbers")
    assert "Failed" in read(tab) and "Paused" not in read(tab) and "*Dismiss* deletes it" in words(tab)
    until(click(tab, "own_resume_Tiny-1M-GPTQ-4bit-32g"), "It loses 2.0 %")
