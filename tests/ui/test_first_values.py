"""What the server takes a field's value for reaches the browser, whatever becomes of the run that drew the field."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from core.access.exposure import LISTENS, LOOPBACK
from core.common.paths import ROOT
from core.library.last_model import is_loaded_at_start, set_loaded_at_start
from core.personas.character import Character
from core.personas.lorebooks import Lorebooks
from core.personas.store import Characters
from core.personas.user import UserPersona, add_persona, save_persona
from core.remote.address import key_of
from core.standby.settings import idle_minutes, other_names, set_idle_minutes, set_other_names
from tests.support.fresh_browser import differently_shown, lose_run, seen, send_late
from tests.support.lorebooks import TOWN
from tests.support.openai_standin import OpenAiStandin
from tests.support.pages import PAGES, WAIT_S, click, open_tab, run
from tests.support.widgets import has, named
from ui.characters.lore_draft import DRAFTS_KEY
from ui.characters.view import VIEW_KEY
from ui.shared import resources

ADA = Character("Ada", greeting="Hi", description="teaches", tags=("maths",), lorebook=TOWN.values,
                alternate_greetings=("Ho",))  # fmt: skip
SETTINGS = {"system": "Be kind.", "sampling": {"temperature": 1.5, "seed": 7, "stop": ["END"]}, "persona": "1"}


def form() -> None:
    import streamlit as st

    from ui.shared.identity import begin_with, key_of

    begin_with("name", "Ada")
    st.text_input("Name", key="name")
    st.text_input("About", key=key_of("about", "", st.session_state.get("stored", "teaches")))


@pytest.mark.parametrize(("key", "value"), [("name", "Ada"), ("about", "teaches")])
def test_a_value_is_sent_until_the_browser_has_it(key: str, value: str) -> None:
    """Streamlit drops what a run drew if another one follows at once: a character's fields were empty then, and one
    that was changed took the others' emptiness with it."""
    tab = AppTest.from_function(form).run()
    for _ in range(2):
        tab = lose_run(tab)
        sent = tab.text_input(key=key).proto
        assert sent.set_value and sent.value == value


@pytest.mark.parametrize("key", ["name", "about"])
def test_what_is_typed_stays(key: str) -> None:
    """What is set while a click is on its way takes the click back."""
    tab = AppTest.from_function(form).run()
    tab.session_state["stored"] = "Eve "
    tab.text_input(key=key).set_value("Eve ").run()
    assert not tab.text_input(key=key).proto.set_value
    # A run that a page asks for itself brings no values either.
    tab = lose_run(tab)
    assert not tab.text_input(key=key).proto.set_value and tab.session_state[key] == "Eve "


@pytest.mark.parametrize("key", ["name", "about"])
def test_a_browser_that_has_left_the_page_gets_its_values_again(key: str) -> None:
    """It forgets the fields at once; the server has them yet if it was not done with the other page."""
    tab = AppTest.from_function(form).run()
    tab = lose_run(tab.run())
    assert not tab.text_input(key=key).proto.set_value
    # A step of the browser's own, which comes with what Streamlit knows of the browser.
    tab.context = {"locale": "en-US"}
    for _ in range(2):
        tab = lose_run(tab)
        assert tab.text_input(key=key).proto.set_value


@pytest.fixture
def lived_in(models: Path, home: Path, no_proxy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dashboard in which little is as at first."""
    monkeypatch.setenv(LISTENS, LOOPBACK)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    Characters().add(ADA)
    save_persona(UserPersona("Kim", "A cook."))
    add_persona(UserPersona("Ann", "A spy."))
    resources.preferences().set("engine", "address", "http://127.0.0.1:2")
    set_loaded_at_start(True)
    set_other_names("load")
    set_idle_minutes("unload", 15)
    Lorebooks().add(TOWN)
    chat = resources.chat_store().create("chat-instruct", "Ada", SETTINGS)
    resources.chat_store().pin(chat, True)


# The page, its address, and what the tab holds when it is opened.
PLACES: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    **{page: (page, {}, {}) for page in [*PAGES, "6_Settings"]},
    "a chat": ("3_Chat", {"chat": "1"}, {}),
    "another server": ("2_Load_Model", {}, {"load_place": "server"}),
    "a source of one's own": ("1_Download", {}, {"download_source": "own", "plan_gpu": "A40"}),
    "a model of one's own": ("1_Download", {}, {"download_section": "own", "own_typed": "/nowhere"}),
    "a search": ("4_Characters", {}, {"characters_search": "ad", "characters_tags": ["maths"]}),
    "a character": ("4_Characters", {"character": "Ada"}, {}),
    "a character's form": ("4_Characters", {}, {VIEW_KEY: ("form", "Ada")}),
    "a persona": ("4_Characters", {}, {VIEW_KEY: ("persona", "1")}),
    "a lorebook": ("4_Characters", {"lorebook": "Town"}, {}),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_browser_that_got_nothing_of_the_first_runs_shows_each_field_as_it_is(lived_in: None, place: str) -> None:
    page, query, held = PLACES[place]
    tab = AppTest.from_file(str(ROOT / "Home.py"), default_timeout=WAIT_S)
    tab.switch_page(f"pages/{page}.py")
    for name, value in query.items():
        tab.query_params[name] = value
    for name, value in held.items():
        tab.session_state[name] = value
    for _ in range(3):
        tab = lose_run(tab)
    assert not differently_shown(tab)


# A step that a browser sends before it has got the last run tells what it showed before -------------------------------


@pytest.mark.parametrize("choice", ["settings_language", "language_choice"])
def test_a_late_step_leaves_the_language_that_was_chosen(lived_in: None, choice: str) -> None:
    """The other choice of language told the old one as if a person had chosen it."""
    tab = open_tab("6_Settings")
    named([*tab.selectbox, *tab.segmented_control], choice).set_value("zh")
    before = seen(tab)
    send_late(run(tab), before)
    assert tab.session_state["language"] == "zh"
    assert resources.preferences().get("languages", "en-US") == "zh"


def test_a_late_step_leaves_what_another_tab_set(lived_in: None) -> None:
    tab = open_tab("6_Settings")
    before = seen(tab)
    set_loaded_at_start(False)
    set_other_names("any")
    set_idle_minutes("unload", 30)
    send_late(run(tab), before)
    assert (is_loaded_at_start(), other_names(), idle_minutes("unload")) == (False, "any", 30)


def test_a_late_step_leads_to_no_other_part_of_a_page(lived_in: None) -> None:
    tab = open_tab("1_Download")
    before = seen(tab)
    tab.session_state["download_section"] = "own"
    run(send_late(run(tab), before))
    assert named(tab.segmented_control, "download_section_choice").value == "own"


def test_a_late_step_brings_no_search_back(lived_in: None) -> None:
    tab = open_tab("4_Characters")
    tab.text_input(key="characters_search_field").set_value("nobody")
    tab = run(tab)
    before = seen(tab)
    tab = send_late(click(tab, "characters_show_all"), before)
    assert has(tab.button, "character_open_Ada") and not named(tab.text_input, "characters_search_field").value


def test_a_late_step_leaves_the_entry_that_was_added_to_a_lorebook(lived_in: None) -> None:
    tab = open_tab("4_Characters", query={"lorebook": "Town"})
    before = seen(tab)
    tab = send_late(click(tab, "lorebook_add"), before)
    assert named(tab.selectbox, "character_lore_choice").value == 2


def test_a_key_for_one_server_does_not_stay_for_the_next_one(lived_in: None) -> None:
    """A browser that lost the run in which the field was emptied still had the key in it."""
    tab = open_tab("2_Load_Model")
    tab.segmented_control(key="load_place").set_value("server")
    field = named(run(tab).text_input, "remote_key")
    with OpenAiStandin() as server:
        tab.text_input(key="remote_address").set_value(server.url)
        field.set_value("secret")
        next_field = named(click(tab, "remote_find").text_input, "remote_key")
        assert key_of(server.url) == "secret" and next_field.key != field.key and not next_field.value


def test_a_late_step_in_the_words_of_another_language_changes_nothing(lived_in: None) -> None:
    """A browser tells a choice by its words: those of the language before were taken for the new choice."""
    tab = open_tab("3_Chat", query={"chat": "1"})
    named(tab.segmented_control, "language_choice").set_value("zh")
    before = seen(tab)
    stored = resources.chat_store().info(1)
    send_late(run(tab), before)
    assert resources.chat_store().info(1) == stored


def test_a_late_step_in_the_words_of_another_language_changes_no_draft(lived_in: None) -> None:
    tab = click(open_tab("4_Characters", query={"character": "Ada"}), "character_edit")
    named(tab.text_area, "character_field_greeting").set_value("Hello")
    named(run(tab).segmented_control, "language_choice").set_value("zh")
    before = seen(tab)
    tab = send_late(run(tab), before)
    draft = tab.session_state[DRAFTS_KEY]["Ada"]
    assert draft.now == replace(ADA, greeting="Hello")
