"""What pages show of idleness: the countdown and its button, a model that sleeps and wakes for a question, the day."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.common.paths import adapters_dir
from core.hub.folders import ModelFolders, locked
from core.standby.idle_day import Day
from core.standby.settings import COMMAND, set_idle_minutes
from tests.support.pages import WAIT_S, ask, finish, last_message, load, open_tab, run
from tests.support.processes import wait_until
from ui.shared import resources
from ui.shared.idle import duration


def sidebar(tab) -> str:
    return "\n".join(str(one.value) for one in (*tab.sidebar.warning, *tab.sidebar.markdown, *tab.sidebar.caption))


def pass_s(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    watch = resources.idle_watch()
    monkeypatch.setattr(type(watch), "idle_s", property(lambda self: seconds))


@pytest.mark.parametrize(("idle_s", "said"), [(30, None), (120, "28 min"), (1700, "1:40")])
def test_every_page_counts_down_to_the_command(
    models: Path, monkeypatch: pytest.MonkeyPatch, idle_s: float, said: str | None
) -> None:
    monkeypatch.setenv(COMMAND, "true")
    set_idle_minutes("command", 30)
    pass_s(monkeypatch, idle_s)
    for page in (None, "5_GPU_Monitor"):
        tab = open_tab(page)
        assert ("Nothing is done here" in sidebar(tab)) == (said is not None)
        assert said is None or said in sidebar(tab)


def test_the_end_of_the_countdown_is_told_once_where_no_sidebar_is_seen(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COMMAND, "true")
    set_idle_minutes("command", 30)
    pass_s(monkeypatch, 1700)
    tab = open_tab()
    assert ["1:40" in toast.value for toast in tab.toast] == [True]
    assert not run(tab).toast
    set_idle_minutes("command", 2)
    pass_s(monkeypatch, 30)
    assert not run(tab).toast
    pass_s(monkeypatch, 70)
    assert len(run(tab).toast) == 1


def test_whoever_is_there_puts_it_off(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMAND, "true")
    set_idle_minutes("command", 30)
    pass_s(monkeypatch, 300)
    tab = open_tab()
    monkeypatch.setattr(resources.idle_watch(), "_busy_s", -1.0)
    tab.button(key="idle_stay").click()
    run(tab)
    assert resources.idle_watch()._busy_s > 0


def test_a_question_wakes_the_model_that_sleeps(models: Path) -> None:
    load(open_tab(), "tiny")
    assert resources.engine().sleep()
    tab = open_tab("3_Chat")
    assert "tiny was unloaded because it was not used" in "\n".join(one.value for one in tab.markdown)
    assert not tab.chat_input[0].disabled
    ask(tab, "hello")
    assert resources.engine().wait_while_loading(WAIT_S).phase == "ready"
    run(tab)
    finish(tab)
    assert (last_message().role, last_message().text) == ("assistant", "You said: hello ")


def test_two_tabs_may_ask_a_model_that_sleeps(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second was told that no model is loaded, since its page had not shown yet that one is coming."""
    load(open_tab(), "tiny")
    assert resources.engine().sleep()
    tabs = [open_tab("3_Chat"), open_tab("3_Chat")]
    monkeypatch.setenv("LLAMADECK_FAKE_LOAD_S", "600")
    resources.engine().wake()
    for tab, words in zip(tabs, ("first", "second"), strict=True):
        ask(tab, words)
        assert resources.engine().state.phase == "loading" and not tab.error
    resources.engine().unload()
    monkeypatch.delenv("LLAMADECK_FAKE_LOAD_S")
    load(open_tab(), "tiny")
    for number, (tab, words) in enumerate(zip(tabs, ("first", "second"), strict=True), 1):
        finish(run(tab))
        assert last_message(number).text == f"You said: {words} "


def test_a_click_wakes_it_too(models: Path) -> None:
    load(open_tab(), "tiny")
    assert resources.engine().sleep()
    tab = open_tab("3_Chat")
    assert "Asleep" in sidebar(tab) and "tiny" in sidebar(tab)
    tab.button(key="engine_wake").click()
    run(tab)
    assert resources.engine().wait_while_loading(WAIT_S).model == "tiny"


def test_why_it_did_not_wake_is_told_and_it_can_be_tried_again(models: Path) -> None:
    load(open_tab(), "tiny")
    assert resources.engine().sleep()
    config = models / "tiny" / "config.json"
    config.rename(models / "kept.json")
    for _ in range(2):  # Two tabs.
        resources.engine().wake()
    assert resources.engine().wait_while_loading(WAIT_S).phase == "failed"
    tab = open_tab("3_Chat")
    assert any("config.json" in one.value for one in tab.error) and "Asleep" not in sidebar(tab)
    (models / "kept.json").rename(config)
    tab.button(key="engine_wake").click()
    run(tab)
    assert resources.engine().wait_while_loading(WAIT_S).phase == "ready"


def test_an_adapter_that_the_command_line_fetches_puts_it_off(models: Path, tmp_path: Path) -> None:
    folders = ModelFolders(adapters_dir(), "me_pirate")
    folders.unfinished.mkdir(parents=True)
    watch = resources.idle_watch()
    assert not watch._is_busy()
    with locked(folders):
        assert watch._is_busy()


def test_a_command_that_goes_on_is_told(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "end")
    monkeypatch.setenv(COMMAND, f"read word < '{tmp_path / 'end'}'")
    set_idle_minutes("command", 1)
    pass_s(monkeypatch, 61)
    watch = resources.idle_watch()
    watch.poll()
    assert "is running" in sidebar(open_tab())
    (tmp_path / "end").write_text("now\n", "utf-8")

    def has_ended() -> bool:
        watch.poll()
        return watch.running_command is None

    wait_until(has_ended)
    assert "is running" not in sidebar(open_tab())


def test_home_says_how_long_a_card_was_there_for_nothing(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.idle_watch().day, "_day", Day("2026-11-30", 20_000.0, 18_720.0))
    monkeypatch.setattr("ui.shared.idle.gpus_here", lambda: [object()])
    tab = open_tab()
    assert any("5 h 12 min of 5 h 33 min" in one.value for one in tab.caption)
    assert duration(59) == "1 min"
