"""Every page in the ways that people use it, with Streamlit's AppTest and an engine process that has no model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st

from core.common.errors import DeckError, GpuUseError
from core.common.paths import ROOT
from core.engine import process
from core.engine.protocol import EngineState
from core.starter.build import NAME as STARTER
from core.worker.heartbeat import BEAT_S
from tests.support.checkpoints import make_checkpoint
from tests.support.pages import (
    LONG_NAME,
    PAGES,
    WAIT_S,
    ask,
    click,
    finish,
    go,
    is_primary,
    last_answer,
    last_message,
    load,
    open_tab,
    run,
    words,
)
from tests.support.processes import wait_until
from tests.support.widgets import named
from ui.shared import resources


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
@pytest.mark.parametrize("page", [None, *PAGES])
def test_every_page_runs_and_has_a_heading(models: Path, page: str | None, locale: str) -> None:
    tab = open_tab(page, locale)
    assert len(tab.title) + len(tab.header) == 1


def test_the_first_language_is_the_browsers(models: Path) -> None:
    assert open_tab("1_Download", "zh-CN").title[0].value == "下载"
    assert open_tab("1_Download", "de-DE").title[0].value == "Download"


def test_a_chosen_language_is_remembered_for_browsers_of_that_locale(models: Path, tmp_path: Path) -> None:
    tab = open_tab("1_Download", "zh-CN")
    tab.segmented_control(key="language_choice").set_value("en")
    assert run(tab).title[0].value == "Download"
    assert json.loads((tmp_path / "data" / "settings.json").read_text("utf-8")) == {"languages": {"zh-CN": "en"}}
    st.cache_resource.clear()
    assert open_tab("1_Download", "zh-CN").title[0].value == "Download"
    assert open_tab("1_Download", "zh-TW").title[0].value == "下载"


def test_a_switch_of_language_keeps_chat_settings_and_page(models: Path) -> None:
    tab = load(open_tab(), "tiny")
    finish(ask(go(tab, "3_Chat"), "hello"))
    named(tab.slider, "sampling_temperature").set_value(1.5)
    run(tab).segmented_control(key="language_choice").set_value("zh")
    run(tab)
    assert tab.header[0].value == "hello"
    assert named(tab.slider, "sampling_temperature").value == 1.5
    assert "You said: hello" in words(tab)


def test_home_says_what_to_do_next(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tab = open_tab()
    assert [button.key for button in tab.button if button.proto.type == "primary"] == ["home_start_refused"]
    load(tab, "tiny")
    tab = open_tab()
    assert is_primary(tab, "home_chat")
    assert "**tiny** is loaded" in words(tab)
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path / "nothing"))
    resources.engine().unload()
    tab = open_tab()
    assert is_primary(tab, "home_get")


def test_one_click_on_home_loads_the_model_of_the_last_time_and_opens_the_chat(models: Path) -> None:
    load(open_tab(), "tiny")
    resources.engine().unload()
    tab = open_tab()
    offers = [str(button.key) for button in tab.button if str(button.key).startswith("home_start_")]
    assert offers[0] == "home_start_tiny" and is_primary(tab, offers[0])
    click(tab, "home_start_tiny")
    assert resources.engine().wait_while_loading(WAIT_S).model == "tiny"
    finish(ask(run(tab), "hello"))
    assert "You said: hello" in words(run(tab))


def test_the_starter_comes_after_real_models_and_is_called_a_toy(models: Path, checkpoint: Path) -> None:
    (models / STARTER).symlink_to(checkpoint)
    tab = open_tab()
    offers = [str(button.key) for button in tab.button if str(button.key).startswith("home_start_")]
    assert len(offers) == 3 and f"home_start_{STARTER}" not in offers
    assert "not to be believed" not in words(tab)
    tab = load(tab, STARTER)
    for page in (open_tab(), go(tab, "2_Load_Model"), go(tab, "3_Chat")):
        assert "not to be believed" in words(page)
    load(tab, "tiny")
    for page in (open_tab(), go(tab, "3_Chat")):
        assert "not to be believed" not in words(page)


def test_a_model_that_does_not_fit_is_not_offered_on_home(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ui.home.verdict", lambda *_: DeckError("no_kernel", model="tiny", quantization="?"))
    tab = open_tab()
    assert not [button for button in tab.button if str(button.key).startswith("home_start_")]
    assert is_primary(tab, "home_load")


def test_no_model_is_offered_on_home_where_its_load_would_be_refused(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ui.home.gpu_error", lambda: GpuUseError("gpu_lost", gpus="A"))
    tab = open_tab()
    assert not [button for button in tab.button if str(button.key).startswith("home_start_")]
    assert is_primary(tab, "home_load")


def test_load_model_without_any_model_leads_to_download(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_MODELS", str(models / "nothing"))
    tab = click(open_tab("2_Load_Model"), "load_get")
    assert tab.title[0].value == "Download"


def test_a_broken_folder_stands_below_the_models_with_its_reason(models: Path) -> None:
    tab = open_tab("2_Load_Model")
    assert tab.error[0].value == "broken is incomplete: it has no config.json. Put the model's config.json there, " \
        "download the model, or take the folder out of models."  # fmt: skip
    names = [element.value for element in tab.markdown if element.value.endswith("**")]
    assert names.index(":material/folder_off: **broken**") > names.index("**tiny**")


def test_names_are_shown_letter_by_letter(models: Path) -> None:
    tab = open_tab("2_Load_Model")
    shown = next(element.value for element in tab.markdown if "TheBloke" in element.value)
    assert shown.replace("\\", "") == f"**{LONG_NAME}**"
    assert "\\$igns" in shown and "under\\_scores" in shown


def test_a_repaired_folder_becomes_a_model(models: Path, checkpoint: Path) -> None:
    tab = open_tab("2_Load_Model")
    for path in checkpoint.iterdir():
        (models / "broken" / path.name).write_bytes(path.read_bytes())
    assert not run(tab).error
    assert tab.button(key="load_model_broken")


def test_a_folder_whose_name_is_no_utf8_is_shown_and_harms_nothing(models: Path) -> None:
    os.mkdir(os.fsencode(models) + b"/bad\xff")
    tab = open_tab("2_Load_Model")
    assert len(tab.error) == 2 and tab.button(key="load_model_tiny")
    assert len(open_tab().error) == 0


def test_a_models_folder_that_is_a_file_is_a_sentence(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_MODELS", str(models / "tiny" / "config.json"))
    assert "cannot be read" in open_tab("2_Load_Model").error[0].value
    assert "cannot be read" in open_tab().error[0].value


def test_a_load_names_its_stage_and_then_says_that_it_succeeded(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_FAKE_LOAD_S", "60")
    tab = click(open_tab("2_Load_Model"), "load_model_tiny")
    assert any("Starting the engine" in bar.text for bar in tab.progress)
    assert any("Starting the engine" in bar.text for bar in go(tab, "3_Chat").progress)
    assert "Loading" in words(tab)
    click(go(tab, "2_Load_Model"), "load_cancel")
    assert not tab.progress and resources.engine().state.phase == "empty"
    monkeypatch.setenv("LLAMADECK_FAKE_LOAD_S", "0")
    tab = load(tab, "tiny")
    assert tab.success[0].proto.title == "Successfully loaded"
    assert "each with 256 tokens" in words(tab)


def test_the_model_that_answers_stands_at_the_top(models: Path) -> None:
    tab = load(open_tab(), "tiny")
    assert next(element.value for element in tab.markdown if element.value.endswith("**")) == "**tiny**"


def test_what_is_not_as_the_configuration_says_is_told_once_loaded(models: Path, checkpoint: Path) -> None:
    (models / "noted").symlink_to(checkpoint)
    told = words(load(open_tab(), "noted"))
    assert "a head of its own" in told and "another version of the format" in told
    assert "a head of its own" not in words(load(open_tab(), "tiny"))


def test_loading_another_model_takes_the_place_of_the_first(models: Path) -> None:
    tab = load(load(open_tab(), "tiny"), LONG_NAME)
    assert resources.engine().state.model == LONG_NAME
    assert len(tab.success) == 1 and tab.button(key="load_model_tiny")
    click(tab, "load_unload")
    assert resources.engine().state.phase == "empty" and not tab.success


def test_models_may_be_called_as_other_things_on_the_page_are(models: Path, checkpoint: Path) -> None:
    """A folder named chat once had the key of the button that leads to the chat, and the page ended with an error."""
    names = ("chat", "place", "ask_tiny", "unload_tiny", "model_tiny")
    for name in names:
        (models / name).symlink_to(checkpoint)
    tab = load(open_tab(), "tiny")
    assert tab.success and all(tab.button(key=f"load_model_{name}") for name in names)
    assert not go(tab, "1_Download").exception


def test_unload_on_an_old_page_leaves_what_another_tab_loaded(models: Path) -> None:
    tab = load(open_tab(), "tiny")
    make_checkpoint(models / "other")
    load(open_tab(), "other")
    assert "other" in words(click(tab, "load_unload"))
    assert (resources.engine().state.model, resources.engine().state.phase) == ("other", "ready")


def test_a_load_takes_the_sliders_as_they_are_and_not_as_they_were_drawn(models: Path) -> None:
    tab = open_tab("2_Load_Model")
    named(tab.select_slider, "gauge_chats_tiny").set_value(4)
    click(tab, "load_model_tiny")
    resources.engine().wait_while_loading(WAIT_S)
    facts = resources.engine().state.facts
    assert facts is not None and facts.num_slots == 4


def test_a_refused_load_says_why_and_another_one_works(models: Path) -> None:
    tab = load(open_tab(), "refused")
    assert tab.error[0].value == "No model is loaded. Load one first."
    assert "Failed" in words(tab)
    assert load(tab, "tiny").success


def test_a_model_whose_folder_is_gone_still_shows_that_it_is_loaded(models: Path) -> None:
    tab = load(open_tab(), "tiny")
    (models / "tiny").unlink()
    assert run(tab).success and named(tab.button, "load_unload")


def test_chat_without_a_model_leads_to_load_model(models: Path) -> None:
    tab = open_tab("3_Chat")
    assert named(tab.chat_input, "chat_input").disabled
    assert click(tab, "go_load").title[0].value == "Load model"


def test_chat_says_that_a_model_is_being_loaded(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asked for one to be loaded, all the while that one was."""
    assert named(open_tab("3_Chat").chat_input, "chat_input").placeholder == "Load a model to chat"
    monkeypatch.setattr(resources.engine().local, "_state", EngineState("loading", "tiny"))
    waiting = named(open_tab("3_Chat").chat_input, "chat_input")
    assert waiting.disabled and waiting.placeholder == "A model is being loaded"


def test_a_question_is_answered_and_the_address_names_the_chat(models: Path) -> None:
    tab = load(open_tab(), "tiny")
    finish(ask(go(tab, "3_Chat"), "hello there"))
    assert [message.name for message in tab.chat_message] == ["user", "assistant"]
    assert "You said: hello there" in words(tab) and "tokens/s" in words(tab)
    assert tab.query_params["chat"] == "1"
    finish(ask(tab, "and again"))
    assert len(tab.chat_message) == 4 and "You said: and again" in words(tab)


def test_one_of_the_suggestions_begins_a_chat(models: Path) -> None:
    tab = load(open_tab(), "tiny")
    finish(click(go(tab, "3_Chat"), "chat_idea_plan"))
    assert "You said: Give me three ideas" in words(tab)


def test_stop_keeps_what_was_said(models: Path) -> None:
    tab = load(open_tab(), "tiny")
    ask(go(tab, "3_Chat"), "forever")
    assert last_answer().wait_for_text(20, WAIT_S)
    finish(click(tab, "chat_stop"))
    assert last_message().stats["reason"] == "cancelled"
    assert "one two" in words(tab) and "Stopped" in words(tab)
    assert "chat_stop" not in [button.key for button in tab.button]


def test_an_answer_that_fails_keeps_what_was_said_and_says_why(models: Path) -> None:
    tab = load(open_tab(), "tiny")
    finish(ask(go(tab, "3_Chat"), "please fail after some words"))
    assert "You said: please fail" in words(tab)
    assert tab.error[0].value == "No model is loaded. Load one first."
    assert "You said: works" in words(finish(ask(tab, "works")))


def test_an_engine_killed_in_the_middle_of_an_answer_loses_nothing_and_loads_again(models: Path) -> None:
    tab = load(open_tab(), "tiny")
    finish(ask(go(tab, "3_Chat"), "please die after some words"))
    assert "You said: please die" in words(tab)
    assert [error.value.split(",")[0] for error in tab.error] == ["The engine's process was killed"]
    assert named(tab.chat_input, "chat_input").disabled and "Failed" in words(tab)
    finish(ask(go(load(tab, "tiny"), "3_Chat"), "hello again"))
    assert "You said: hello again" in words(tab)


def test_what_is_asked_too_early_is_asked_when_the_answer_is_finished(models: Path) -> None:
    tab = load(open_tab(), "tiny")
    ask(go(tab, "3_Chat"), "forever")
    ask(tab, "my next question")
    assert "Asked as soon as" in words(tab) and len(tab.chat_message) == 3
    first = last_message().id
    click(tab, "chat_stop")
    assert resources.recorder().wait(first, WAIT_S)
    finish(run(tab))
    assert "You said: my next question" in words(tab) and "Asked as soon as" not in words(tab)
    assert len(tab.chat_message) == 4


def test_a_running_answer_goes_on_while_other_pages_are_looked_at(models: Path) -> None:
    tab = load(open_tab(), "tiny")
    ask(go(tab, "3_Chat"), "words=50 wait=0.01")
    for page in PAGES:
        go(tab, page)
    finish(go(tab, "3_Chat"))
    assert last_message().stats["reason"] == "end" and last_message().stats["tokens"] == 50


def test_a_new_tab_finds_the_chat_that_is_being_answered(models: Path) -> None:
    tab = load(open_tab(), "tiny")
    ask(go(tab, "3_Chat"), "forever and ever")
    assert open_tab("3_Chat").header[0].value == "forever and ever"
    finish(click(tab, "chat_stop"))
    assert open_tab("3_Chat").header[0].value == "New chat"
    assert open_tab("3_Chat", query={"chat": "1"}).header[0].value == "forever and ever"


@pytest.mark.parametrize("number", ["7", "0", "-1", "²", "one", "9" * 5000, ""])
def test_an_address_with_a_chat_that_is_not_there_says_so(models: Path, number: str) -> None:
    tab = open_tab("3_Chat", query={"chat": number})
    assert "no longer here" in tab.info[0].value and tab.header[0].value == "New chat"


def test_two_chats_are_answered_at_once_and_can_be_switched_and_deleted(models: Path) -> None:
    tab = load(open_tab(), "tiny")
    ask(go(tab, "3_Chat"), "forever one")
    ask(click(tab, "chat_new"), "forever two")
    assert len(resources.engine().running_answers) == 2
    assert click(tab, "chat_open_1").header[0].value == "forever one"
    deleted = last_answer(1)
    assert click(tab, "chat_delete").header[0].value == "New chat"
    assert deleted.wait(WAIT_S) and [info.id for info in resources.chat_store().chats()] == [2]
    assert click(tab, "chat_open_2").header[0].value == "forever two"


def test_the_generation_settings_reach_the_engine_and_stay_over_a_switch_of_pages(models: Path) -> None:
    tab = load(open_tab(), "tiny")
    named(go(tab, "3_Chat").slider, "sampling_temperature").set_value(0.25)
    named(tab.number_input, "sampling_seed").set_value(7)
    named(tab.number_input, "sampling_max_new_tokens").set_value(64)
    run(tab)
    go(go(tab, "1_Download"), "3_Chat")
    finish(ask(tab, "settings"))
    assert last_message().text.startswith("Sampling(temperature=0.25, top_p=0.9, top_k=0")
    assert "max_new_tokens=64, seed=7" in last_message().text
    click(tab, "sampling_reset")
    assert named(tab.slider, "sampling_temperature").value == 0.7
    assert named(tab.number_input, "sampling_seed").value is None


def test_money_stays_money_and_code_stays_code(models: Path) -> None:
    tab = load(open_tab(), "tiny")
    finish(ask(go(tab, "3_Chat"), "sample"))
    answer = next(element.value for element in tab.markdown if "Lunch" in element.value)
    assert "\\$5 and dinner \\$6" in answer and '"lunch": "$5"' in answer and "`code $1`" in answer


def test_what_redraws_itself_has_a_container_of_its_own() -> None:
    """Elements behind a polling fragment used to vanish now and then: the choice of language, a queued question.

    When a fragment's tick fell on the end of a run of the whole page, the browser got the page without the
    fragment's elements, closed the gap, and then drew the fragment over the element that had moved into its place.
    redraw_every gives each fragment a container in which nothing follows it.
    """
    sources = [*(ROOT / "pages").glob("*.py"), *(ROOT / "ui").rglob("*.py"), ROOT / "Home.py"]
    users = [path.name for path in sources if "st.fragment" in path.read_text("utf-8")]
    assert users == ["fragment.py"]


def test_the_first_visit_to_any_page_gets_the_router() -> None:
    """A tab that was on /Chat while the dashboard was started anew got that page alone, without sidebar and status.

    Streamlit ran the page for itself, as in its older kind of app, because Home.py had not yet run in the process.
    """
    script = (
        "import serve\nfrom streamlit.runtime.pages_manager import PagesManager\n"
        "print(PagesManager.uses_pages_directory)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
    assert all("\nrequire_router()\n" in (ROOT / "pages" / f"{page}.py").read_text("utf-8") for page in PAGES)


def test_the_dashboards_process_never_imports_torch(models: Path) -> None:
    """All pages are run, a model is loaded and asked, in a process of which it is then asked what it imported."""
    script = (
        "import sys, serve\nfrom tests.support import pages as t\n"
        "tab = t.load(t.open_tab(), 'tiny')\n"
        "t.finish(t.ask(t.go(tab, '3_Chat'), 'hello'))\n"
        "[t.go(tab, page) for page in t.PAGES]\nt.resources.engine().unload()\n"
        "print([name for name in ('torch', 'transformers', 'gptqmodel') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.stdout.strip().splitlines()[-1:] == ["[]"], done.stderr


# An engine that hangs -----------------------------------------------------------------------------------------------


@pytest.fixture
def hanging(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The process of an engine that has a model and is stopped, and counts as silent."""
    monkeypatch.setattr(process, "SILENT_S", 3 * BEAT_S)
    engine = resources.engine()
    engine.load(models / "tiny")
    assert engine.wait_while_loading(WAIT_S).phase == "ready" and engine.local.worker_pid is not None
    pid = engine.local.worker_pid
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: engine.silent_s)
    yield pid
    if engine.local.worker_pid == pid:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("page", "locale", "words"),
    [("2_Load_Model", "en-US", "has not answered for"), ("2_Load_Model", "zh-CN", "秒没有响应"),
     ("3_Chat", "en-US", "has not answered for")],
)  # fmt: skip
def test_a_page_says_that_the_engine_hangs_and_unload_ends_it(hanging: int, page: str, locale: str, words: str) -> None:
    tab = open_tab(page, locale)
    assert words in tab.warning[0].value
    status = [one.value for one in (*tab.sidebar.markdown, *tab.sidebar.caption)]
    assert any("hangs" in value or "无响应" in value for value in status)
    click(tab, "engine_unload_page")
    assert resources.engine().state.phase == "empty" and not tab.warning
    with pytest.raises(ProcessLookupError):
        os.kill(hanging, 0)


def test_the_sidebar_of_every_page_has_the_way_out(hanging: int) -> None:
    tab = open_tab("4_Characters")
    click(tab, "engine_unload_sidebar")
    assert resources.engine().state.phase == "empty"
    assert "engine_unload_sidebar" not in [button.key for button in tab.button]


def test_when_the_engine_goes_on_so_do_the_pages(hanging: int) -> None:
    tab = open_tab("3_Chat")
    ask(tab, "hello")
    assert tab.warning and last_answer().phase == "queued"
    os.kill(hanging, signal.SIGCONT)
    wait_until(lambda: not resources.engine().silent_s and last_message().state == "done")
    run(tab)
    assert not tab.warning and last_message().text.strip() == "You said: hello"


def test_stop_works_while_the_engine_hangs(hanging: int) -> None:
    tab = open_tab("3_Chat")
    ask(tab, "forever")
    finish(click(tab, "chat_stop"))
    assert last_message().state == "stopped" and resources.engine().running_answers == []


def test_home_does_not_call_an_engine_ready_that_hangs(hanging: int) -> None:
    tab = open_tab()
    assert not tab.success and "has not answered for" in tab.warning[0].value
