"""A lorebook changed entry by entry: what is not changed stays, whatever kind of value it is."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from core.personas.lore_editing import (
    add_entry,
    book_values,
    can_change_entries,
    change_book,
    change_entry,
    entry_indexes,
    entry_values,
    foreign_keys,
    remove_entry,
)
from core.personas.lore_entry import read_entries
from tests.support.lorebooks import VALUES

KEYS = st.sampled_from(["keys", "content", "insertion_order", "priority", "enabled", "selective", "secondary_keys",
                        "name", "comment", "position", "extensions", "other"])  # fmt: skip
BOOKS = st.fixed_dictionaries({}, optional={
    "entries": st.lists(st.dictionaries(KEYS, VALUES, max_size=6) | VALUES, max_size=4),
    "scan_depth": VALUES, "token_budget": VALUES, "recursive_scanning": VALUES, "strange": VALUES,
})  # fmt: skip


@given(BOOKS)
def test_every_lorebook_has_values_to_show(book: dict[str, Any]) -> None:
    for index in entry_indexes(book):
        values = entry_values(book, index)
        assert all(isinstance(key, str) for key in [*values["keys"], *values["secondary_keys"]])
        assert isinstance(values["insertion_order"], int)
    assert set(book_values(book)) == {"scan_depth", "token_budget", "recursive_scanning"}
    assert all(isinstance(name, str) for name in foreign_keys(book))


@given(BOOKS)
def test_a_change_of_one_text_leaves_everything_else(book: dict[str, Any]) -> None:
    for index in entry_indexes(book):
        changed = change_entry(book, index, {"content": "new"})
        assert changed["entries"][index] == book["entries"][index] | {"content": "new"}
        assert change_entry(changed, index, {"content": None})["entries"][index].get("content") is None
        others = [entry for i, entry in enumerate(changed["entries"]) if i != index]
        assert others == [entry for i, entry in enumerate(book["entries"]) if i != index]
        assert {name: value for name, value in changed.items() if name != "entries"} == {
            name: value for name, value in book.items() if name != "entries"
        }


@given(BOOKS)
def test_an_entry_that_is_added_and_removed_leaves_the_book_as_it_was(book: dict[str, Any]) -> None:
    added = add_entry(book)
    index = len(added["entries"]) - 1
    assert entry_values(added, index)["enabled"]
    removed = remove_entry(added, index)
    assert removed["entries"] == book.get("entries", [])


def test_second_keys_take_effect_as_soon_as_there_are_some() -> None:
    book = change_entry(add_entry({}), 0, {"keys": ["a"], "secondary_keys": ["b"], "content": "x"})
    assert read_entries(book)[0].secondary_keys == ("b",)
    assert not change_entry(book, 0, {"secondary_keys": []})["entries"][0]["selective"]


def test_a_title_is_changed_under_the_name_that_it_has() -> None:
    book = {"entries": [{"comment": "old"}]}
    assert change_entry(book, 0, {"name": "new"})["entries"] == [{"comment": "new"}]
    assert change_entry({"entries": [{}]}, 0, {"name": "new"})["entries"] == [{"name": "new"}]


def test_entries_of_another_form_and_values_of_the_book() -> None:
    assert not can_change_entries({"entries": {"0": {}}})
    assert entry_indexes({"entries": {"0": {}}}) == []
    assert change_book({"scan_depth": 4, "x": None}, {"scan_depth": None, "token_budget": 9}) == {
        "token_budget": 9,
        "x": None,
    }
