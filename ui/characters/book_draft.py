"""A lorebook of its own that is being written; outlives reruns and switches of pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import streamlit as st

from core.personas.fields import read_name
from core.personas.lorebooks import Book, named
from ui.characters.lore_draft import BOOKS_KEY, LoreDraft
from ui.shared.resources import lorebooks

NAME, IN_ALL_CHATS = "book_name", "in_all_chats"


@dataclass
class BookDraft(LoreDraft):
    """A form's content. `key` and `base` say which file it was read from and what was in it."""

    key: str
    base: Book
    now: Book

    @property
    def is_changed(self) -> bool:
        return self.now != self.base

    @property
    def book(self) -> Mapping[str, Any]:
        return self.now.values

    def change_book(self, book: Mapping[str, Any]) -> None:
        self.now = replace(self.now, values=book)

    def collect(self) -> None:
        state = st.session_state
        typed = read_name(state.get(self.field_key(NAME), self.now.name))
        is_everywhere = bool(state.get(self.field_key(IN_ALL_CHATS), self.now.in_all_chats))
        if typed != self.now.name:
            self.change_book(named(self.now.values, typed))
        self.now = replace(self.now, in_all_chats=is_everywhere)
        self.collect_book()


def book_drafts() -> dict[str, BookDraft]:
    """This tab's drafts by the lorebook's key."""
    found: dict[str, BookDraft] = st.session_state.setdefault(BOOKS_KEY, {})
    return found


def book_draft_of(key: str) -> BookDraft:
    """The draft of a lorebook, begun now where there is none. Raises DeckError for a file that is gone or broken."""
    if key not in book_drafts():
        read = lorebooks().book(key)
        book_drafts()[key] = BookDraft(key, read, read, table_book=read.values)
    return book_drafts()[key]


def has_book_changes(key: str) -> bool:
    draft = book_drafts().get(key)
    return draft is not None and draft.is_changed


def renew_book_drafts() -> None:
    """On arrival from another page: the browser has forgotten its fields, where the server may not have."""
    for draft in book_drafts().values():
        draft.renew()
