"""The folder of lorebooks: written whole, never over somebody else's, odd files named, deleted into a trash."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.common.errors import DeckError
from core.personas.attached import attached_names, read_attached, with_attached
from core.personas.character import Character, CharacterError
from core.personas.lorebooks import Book, Lorebooks
from tests.support.lorebooks import WORLD_INFO

TOWN = Book({"name": "Town", "extensions": {}, "entries": [{"keys": ["hut"], "content": "Low.", "oddity": [1]}]})


@pytest.fixture
def store(tmp_path: Path) -> Lorebooks:
    return Lorebooks(tmp_path / "lorebooks")


def fails(key: str, work: Any, *values: Any) -> None:
    with pytest.raises(DeckError) as caught:
        work(*values)
    assert caught.value.key == key
    assert caught.value.sentence("zh") != caught.value.sentence("en")


def test_a_lorebook_is_kept_as_it_was_written_and_seen_by_another_reader(store: Lorebooks) -> None:
    assert store.entries() == ()
    key = store.add(replace(TOWN, in_all_chats=True))
    read = Lorebooks(store.folder).book(key)
    assert read.in_all_chats and read.values["entries"][0].items() >= TOWN.values["entries"][0].items()
    store.save(key, replace(read, in_all_chats=False), read)
    assert json.loads((store.folder / "Town.json").read_text()).keys() == {"spec", "data"}
    assert Lorebooks(store.folder).book(key).values == read.values


def test_a_new_name_leaves_the_key_so_that_chats_keep_the_book(store: Lorebooks) -> None:
    key = store.add(TOWN)
    store.save(key, Book(TOWN.values | {"name": "City"}), store.book(key))
    assert (store.book(key).name, key) == ("City", "Town")
    found = [store.find(name) for name in ("Town", "city", "hamlet")]
    assert [entry.name if entry else None for entry in found] == ["City", "City", None]
    assert store.add(TOWN) == "Town 2"
    assert store.find("Town") == store.get("Town")


def test_names_are_checked_and_numbered(store: Lorebooks) -> None:
    store.add(TOWN)
    fails("lorebook_name_taken", store.add, Book({"name": "TOWN", "entries": []}))
    fails("lorebook_no_name", store.add, Book({"name": " ", "entries": []}))
    fails("character_long_name", store.add, Book({"name": "x" * 201, "entries": []}))
    assert (store.free_name("town"), store.free_name("Hut")) == ("town (2)", "Hut")
    store.add(Book({"name": "../..", "entries": []}))
    assert {path.parent for path in store.folder.rglob("*.json")} == {store.folder}


def test_what_another_tab_saved_is_not_written_over(store: Lorebooks) -> None:
    key = store.add(TOWN)
    seen = store.book(key)
    store.save(key, replace(seen, in_all_chats=True), seen)
    fails("lorebook_changed", store.save, key, seen, seen)
    fails("lorebook_other", store.delete, key, seen)
    assert store.book(key).in_all_chats
    fails("lorebook_gone", store.save, "nobody", seen, seen)


def test_deleted_and_brought_back(store: Lorebooks) -> None:
    key = store.add(TOWN)
    trashed = store.delete(key, store.book(key))
    assert store.entries() == ()
    assert store.restore(trashed) == key
    fails("lorebook_not_in_trash", store.restore, trashed)
    trashed = store.delete(key, store.book(key))
    store.add(TOWN)
    assert store.restore(trashed) == "Town 2"
    fails("lorebook_not_in_trash", store.restore, "..")


def test_odd_files_say_what_they_are_and_can_be_deleted(store: Lorebooks) -> None:
    store.folder.mkdir()
    for name, content in {
        "list.json": "[1]",
        "broken.json": "{",
        "card.json": '{"name": "A", "first_mes": "x"}',
        "notes.txt": "words",
        "world.json": json.dumps(WORLD_INFO),
        ".hidden": "",
    }.items():
        (store.folder / name).write_text(content, "utf-8")
    (store.folder / "pipe.json").mkdir()
    found = {entry.key: entry.error.key if entry.error else entry.name for entry in store.entries()}
    assert found == {
        "list": "no_lorebook",
        "broken": "card_bad_json",
        "card": "no_lorebook",
        "notes.txt": "lorebook_odd_file",
        "world": "world",
        "pipe": "unreadable",
    }
    trashed = store.delete("notes.txt", None)
    assert store.get("notes.txt") is None
    assert store.restore(trashed) == "notes.txt"
    with pytest.raises(CharacterError):
        store.book("list")


def test_the_books_of_a_chat_come_once_and_those_of_all_chats_last(store: Lorebooks) -> None:
    store.add(Book({"name": "Everywhere", "entries": []}, in_all_chats=True))
    store.add(TOWN)
    names = [book.name for book in store.attached(["Town", "gone", "town", "everywhere"])]
    assert names == ["Town", "Everywhere"]
    assert [book.name for book in store.attached([], with_all_chats=True)] == ["Everywhere"]
    assert store.attached([], with_all_chats=False) == ()


@pytest.mark.parametrize("extensions", [{}, {"llamadeck": 5}, {"llamadeck": {"x": 1}, "world": "W", "y": [2]}])
def test_a_characters_books_lie_in_its_extensions_beside_all_else(extensions: dict[str, Any]) -> None:
    chosen = with_attached(extensions, ["Town", "Hut"])
    assert read_attached(chosen) == ("Town", "Hut")
    without = with_attached(chosen, [])
    assert without == {key: value for key, value in extensions.items() if value != 5}


def test_the_one_book_that_another_program_names_counts_where_the_card_holds_none() -> None:
    assert attached_names(Character("A", extensions={"world": " W "})) == ("W",)
    assert attached_names(Character("A", extensions={"world": "W"}, lorebook={"entries": [{}]})) == ()
    assert attached_names(Character("A", extensions={"world": 5, "llamadeck": {"lorebooks": [1, "T", "T"]}})) == ("T",)
