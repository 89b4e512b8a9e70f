"""Lorebooks of their own on the page Characters, with Streamlit's AppTest and a folder of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from core.personas.cards import write
from core.personas.character import Character
from core.personas.lorebooks import Book, Lorebooks
from tests.support.fresh_browser import seen, send_late
from tests.support.lorebooks import TOWN, WORLD_INFO
from tests.support.pages import click, open_tab, run
from tests.support.widgets import has, named
from ui.characters.importing import import_book, import_file
from ui.characters.lore_draft import BOOKS_KEY


@pytest.fixture
def store(home: Path) -> Lorebooks:
    for name in ("models", "data", "characters"):
        (home / name).mkdir()
    return Lorebooks()


def open_books(locale: str = "en-US", **query: str) -> AppTest:
    return open_tab("4_Characters", locale, query or {"lorebook": ""})


def words(tab: AppTest) -> str:
    kinds = (tab.title, tab.header, tab.markdown, tab.caption, tab.error, tab.success, tab.info)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def opened(tab: AppTest) -> list[str]:
    mark = "lorebook_open_"
    return [button.key.removeprefix(mark) for button in tab.button if (button.key or "").startswith(mark)]


def type_into(tab: AppTest, key: str, text: str) -> AppTest:
    named(tab.text_input if has(tab.text_input, key) else tab.text_area, key).set_value(text)
    return run(tab)


def test_the_folder_lies_beside_the_characters(store: Lorebooks, home: Path) -> None:
    assert store.folder == home / "lorebooks"


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_without_lorebooks_the_page_says_what_to_do(store: Lorebooks, locale: str) -> None:
    tab = click(open_tab("4_Characters", locale, {}), "characters_lorebooks")
    assert ("No lorebooks yet" if locale == "en-US" else "还没有世界书") in words(tab)
    assert tab.query_params["lorebook"] == ""
    assert "characters_new" in [button.key for button in click(tab, "characters_back").button]


def test_a_lorebook_is_made_filled_and_saved(store: Lorebooks) -> None:
    tab = type_into(open_books(), "lorebooks_new_name", "Old  town")
    tab = click(tab, "lorebooks_new_name_0_make")
    assert tab.query_params["lorebook"] == "Old town"
    tab = click(tab, "lorebook_add")
    type_into(tab, "character_lore_0_content", "Nobody lives there.")
    tab.toggle[0].set_value(True)
    tab = click(run(tab), "lorebook_save")
    assert "is saved" in words(tab)
    book = store.book("Old town")
    assert book.in_all_chats and book.values["entries"][0]["content"] == "Nobody lives there."
    tab = click(tab, "characters_back_books")
    assert opened(tab) == ["Old town"] and "1 entry" in words(tab) and "In all chats" in words(tab)


def test_an_entry_that_is_given_another_name_stays_open(store: Lorebooks) -> None:
    """The browser goes on to tell the choice of entries by the name before, which led to the first one."""
    tab = type_into(open_books(), "lorebooks_new_name", "Old town")
    tab = click(click(click(tab, "lorebooks_new_name_0_make"), "lorebook_add"), "lorebook_add")
    choice = named(tab.selectbox, "character_lore_choice")
    assert choice.value == 1
    tab = type_into(tab, "character_lore_1_name", "Mill")
    states = seen(tab)
    for one in states.widgets:
        if one.id == choice.id:
            one.string_value = choice.options[1]
    tab = send_late(tab, states)
    assert named(tab.selectbox, "character_lore_choice").value == 1
    assert named(tab.text_input, "character_lore_1_name").value == "Mill"


def test_a_name_that_is_taken_or_none_is_refused_in_words(store: Lorebooks) -> None:
    store.add(TOWN)
    tab = click(open_books(), "lorebooks_new_name_0_make")
    assert "has no name" in words(tab)
    tab = click(type_into(tab, "lorebooks_new_name", "TOWN"), "lorebooks_new_name_0_make")
    assert "already a lorebook called TOWN" in words(tab)


def test_another_name_is_given_in_the_form(store: Lorebooks) -> None:
    store.add(TOWN)
    tab = type_into(open_books(lorebook="Town"), "character_field_book_name", "City")
    click(tab, "lorebook_save")
    saved = store.book("Town").values
    assert (saved["name"], saved["strange"]) == ("City", 1)
    assert [one["content"] for one in saved["entries"]] == [one["content"] for one in TOWN.values["entries"]]


def test_a_sentence_shows_what_it_sets_off(store: Lorebooks) -> None:
    store.add(TOWN)
    tab = type_into(open_books(lorebook="Town"), "lorebooks_said", "See the tower?")
    assert "**Tower**" in words(tab) and "**Sky**" in words(tab) and "\\{\\{char\\}\\} looks up" in words(tab)
    tab = type_into(tab, "lorebooks_said", "Hello")
    assert "calls up no entry" in words(tab)


def test_what_is_left_out_says_why(store: Lorebooks) -> None:
    store.add(Book(TOWN.values | {"token_budget": 1}))
    tab = type_into(open_books(lorebook="Town"), "lorebooks_said", "See the tower?")
    assert "Tower (no room in its token budget)" in words(tab)


def test_deleted_and_brought_back(store: Lorebooks) -> None:
    store.add(TOWN)
    tab = click(open_books(lorebook="Town"), "lorebook_delete")
    assert store.entries() == () and "**Town** was deleted" in words(tab)
    tab = click(tab, "characters_undo_button")
    assert store.book("Town").values["strange"] == 1 and tab.query_params["lorebook"] == "Town"


def test_what_another_tab_saved_is_shown_and_neither_is_lost(store: Lorebooks) -> None:
    store.add(TOWN)
    tab = type_into(open_books(lorebook="Town"), "character_lore_0_content", "Mine.")
    seen = store.book("Town")
    theirs = replace(seen, in_all_chats=True)
    store.save("Town", theirs, seen)
    tab = click(tab, "lorebook_save")
    assert "saved elsewhere meanwhile" in words(tab) and store.book("Town") == theirs
    tab = click(tab, "lorebook_keep_mine")
    assert store.book("Town").values["entries"][0]["content"] == "Mine."


def test_an_unchanged_form_follows_what_another_tab_saved(store: Lorebooks) -> None:
    store.add(TOWN)
    tab = open_books(lorebook="Town")
    seen = store.book("Town")
    store.save("Town", Book(seen.values | {"name": "City"}), seen)
    assert "City" in words(run(tab))
    assert next(iter(tab.session_state[BOOKS_KEY].values())).base.name == "City"


def test_a_form_whose_file_is_gone_is_saved_as_a_new_lorebook(store: Lorebooks) -> None:
    store.add(TOWN)
    tab = type_into(open_books(lorebook="Town"), "character_lore_0_content", "Mine.")
    store.delete("Town", store.book("Town"))
    tab = click(run(tab), "lorebook_save_as_new")
    assert store.book("Town").values["entries"][0]["content"] == "Mine."


def test_what_was_typed_is_given_up_and_had_back(store: Lorebooks) -> None:
    store.add(TOWN)
    tab = type_into(open_books(lorebook="Town"), "character_lore_0_content", "Mine.")
    tab = click(tab, "lorebook_discard")
    assert "Changes to **Town** were discarded" in words(tab)
    tab = click(tab, "characters_undo_button")
    assert named(tab.text_area, "character_lore_0_content").value == "Mine."


def test_odd_files_are_named_and_an_unknown_address_says_so(store: Lorebooks) -> None:
    store.folder.mkdir()
    (store.folder / "bad.json").write_text("[]")
    (store.folder / "notes.txt").write_text("x")
    tab = open_books()
    assert opened(tab) == ["bad", "notes.txt"] and "is no JSON file" in words(tab)
    tab = click(click(tab, "lorebook_open_notes.txt"), "lorebook_delete")
    assert [entry.key for entry in store.entries()] == ["bad"]
    assert "nobody is not there any more" in words(open_books(lorebook="nobody"))


def imported(name: str, values: Any) -> Any:
    return import_book(name, json.dumps(values).encode())


def test_files_become_lorebooks_and_a_second_one_of_a_name_waits(store: Lorebooks) -> None:
    result = imported("World.json", WORLD_INFO)
    assert (result.name, result.key, store.book("World").num_entries) == ("World", "World", 2)
    again = imported("World.json", WORLD_INFO)
    assert again.error.key == "lorebook_name_taken"
    assert again.add_beside().key == "World (2)"
    card = write(Character("Ada", lorebook={"entries": [{"keys": ["k"], "content": "c"}]}), b"", "json")
    assert store.book(import_book("Ada.json", card).key).values["entries"][0]["content"] == "c"
    assert import_book("x.json", b"{}").error is not None
    assert "Lorebooks" in str(import_file("World.json", json.dumps(WORLD_INFO).encode()).error)
