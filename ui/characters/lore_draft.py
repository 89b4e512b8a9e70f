"""A lorebook that is being written, a character's or one of its own, and what its fields and its table change.

Widgets are only views of a draft: their values go into it whenever they change, and come from it when they are drawn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import streamlit as st

from core.personas.lore_editing import book_values, change_book, change_entry, entry_indexes, entry_values

# Where a tab keeps its drafts of characters, and of lorebooks, by what addresses them.
DRAFTS_KEY, BOOKS_KEY = "characters_drafts", "lorebooks_drafts"
# Every widget of the forms begins so.
FIELD, LORE = "character_field_", "character_lore_"
_numbers = count(1)


def next_number() -> int:
    return next(_numbers)


@dataclass(kw_only=True)
class LoreDraft(ABC):
    """What a form with a lorebook holds.

    `number` is this draft's alone: what a button does is for the draft that it was drawn for. The keys of its widgets
    end with an edition, which is another one when the draft changes behind them: none of them shows or sends what
    belongs to another draft, or to an older state of this one.
    """

    # The lorebook that the table was drawn with; the table's own changes are counted from it.
    table_book: Mapping[str, Any] = field(default_factory=dict)
    number: int = field(default_factory=next_number)
    edition: int = field(default_factory=next_number)
    lore_edition: int = field(default_factory=next_number)
    table_edition: int = field(default_factory=next_number)
    # Another one when entries or greetings have other places than before.
    places: int = field(default_factory=next_number)
    # The index of the entry that the form shows, and the language that it was drawn in.
    entry: int = 0
    language: str = ""

    @property
    @abstractmethod
    def book(self) -> Mapping[str, Any]:
        """The lorebook as it is now."""

    @abstractmethod
    def change_book(self, book: Mapping[str, Any]) -> None:
        """Put another lorebook in its place; the table's own changes are in it already."""

    @abstractmethod
    def collect(self) -> None:
        """Take over what the form's widgets hold by now."""

    def field_key(self, name: str) -> str:
        return f"{FIELD}{name}_{self.edition}"

    def lore_key(self, name: str, index: int | None = None) -> str:
        """The key of a field of the lorebook, or of one of its entries."""
        return f"{LORE}{name if index is None else f'{index}_{name}'}_{self.lore_edition}"

    def table_key(self) -> str:
        return f"lorebook_table_{self.table_edition}"

    def renew(self) -> None:
        """Let all widgets be drawn from the draft again."""
        self.edition, self.places = next_number(), next_number()
        self.renew_lore()
        self.renew_table()

    def renew_in(self, language: str) -> None:
        """Browsers tell a choice by its words: another language has widgets of its own."""
        if self.language not in ("", language):
            self.renew()
        self.language = language

    def renew_lore(self) -> None:
        self.lore_edition = next_number()

    def renew_table(self) -> None:
        self.table_book, self.table_edition = self.book, next_number()

    def set_book(self, book: Mapping[str, Any]) -> None:
        """Change the lorebook other than by its table, which is drawn anew then."""
        self.change_book(book)
        self.renew_table()

    def collect_book(self) -> None:
        book, state = self.book, st.session_state
        old = book_values(book)
        typed = {name: state.get(self.lore_key(name), value) for name, value in old.items()}
        changes = {name: value for name, value in typed.items() if value != old[name]}
        if changes:
            book = change_book(book, changes)
        for index in entry_indexes(book):
            old = entry_values(book, index)
            typed = {name: state.get(self.lore_key(name, index), value) for name, value in old.items()}
            changed = {name: value for name, value in typed.items() if value != old[name]}
            if changed:
                book = change_entry(book, index, changed)
        if book != self.book:
            self.set_book(book)


def find(number: int) -> LoreDraft | None:
    """The draft that a widget was drawn for; None where it is gone."""
    held = (draft for key in (DRAFTS_KEY, BOOKS_KEY) for draft in st.session_state.get(key, {}).values())
    return next((draft for draft in held if draft.number == number), None)


def collect(number: int) -> LoreDraft | None:
    """The draft, with what the form's widgets hold by now.

    None where the same click has ended it already: callbacks come in any order.
    """
    draft = find(number)
    if draft is not None:
        draft.collect()
    return draft


def note_typed(number: int) -> None:
    """For the on_change of the form's widgets."""
    collect(number)


def take_table(number: int, places: int, table: str) -> None:
    """Take over what was changed in the table with the lorebook, a widget by the name of `table`."""
    draft, edits = collect(number), st.session_state.get(table)
    if draft is None or edits is None or draft.places != places:
        return
    book, indexes = draft.book, entry_indexes(draft.table_book)
    for row, changes in edits["edited_rows"].items():
        # A cell that was emptied is None.
        kept = {name: value for name, value in changes.items() if value is not None or name == "keys"}
        book = change_entry(book, indexes[int(row)], {name: value or [] if name == "keys" else value
                                                      for name, value in kept.items()})  # fmt: skip
    draft.change_book(book)
    draft.renew_lore()


def is_same_text(old: str, typed: str) -> bool:
    """A field in a browser knows one kind of line end; a file's own kind is no change."""
    return old == typed or "\n".join(old.splitlines()) == typed
