"""All lorebooks that belong to no character: open, make, import them; what is none says why."""

from __future__ import annotations

import streamlit as st

from core.common.errors import DeckError
from core.personas.fields import read_name, visible
from core.personas.lorebooks import Book, BookEntry
from core.personas.names import same_name
from ui.characters.book_draft import has_book_changes
from ui.characters.importing import LOREBOOKS, draw_import, draw_results
from ui.characters.view import attempt, back_button, draw_messages, show
from ui.shared.errors import sentence, show_error
from ui.shared.i18n import tr
from ui.shared.markdown import escape, shortened
from ui.shared.people import person
from ui.shared.resources import lorebooks

SEARCH_KEY, NEW_KEY = "lorebooks_search", "lorebooks_new_number"
# Fewer are seen at once.
MANY = 8
NAME_CHARS = 60


def draw_books() -> None:
    back_button()
    st.header(tr("lorebooks.title"))
    st.caption(tr("lorebooks.help") + (f" {tr('lorebooks.shared')}" if person() else ""))
    with st.container(horizontal=True, vertical_alignment="center"):
        with st.popover(tr("lorebooks.new"), icon=":material/add:", key="lorebooks_new"):
            _draw_new()
        with st.popover(tr("characters.import"), icon=":material/upload:", key="lorebooks_import"):
            draw_import(LOREBOOKS)
    draw_messages()
    draw_results(LOREBOOKS)
    try:
        entries = lorebooks().entries()
    except DeckError as error:
        show_error(error)
        return
    if not entries:
        with st.container(border=True):
            st.markdown(tr("lorebooks.none"))
    words = ""
    if len(entries) > MANY:
        words = str(st.text_input(tr("lorebooks.search"), key=SEARCH_KEY, type="search", icon=":material/search:",
                                  live=True, placeholder=tr("lorebooks.search"), label_visibility="collapsed",
                                  persist_state="session") or "")  # fmt: skip
    for entry in entries:
        if same_name(words.strip()) in same_name(entry.name):
            _draw_entry(entry)


def _draw_new() -> None:
    # After each new lorebook the field is another one, and so is empty again.
    key = f"lorebooks_new_name_{st.session_state.setdefault(NEW_KEY, 0)}"
    st.text_input(tr("characters.name"), key=key, placeholder=tr("lorebooks.name_example"))
    st.button(tr("lorebooks.make"), key=f"{key}_make", type="primary", icon=":material/add:", on_click=_make,
              args=(key,))  # fmt: skip


def _make(key: str) -> None:
    book = Book({"name": read_name(st.session_state.get(key)), "extensions": {}, "entries": []})
    new = attempt(lambda: lorebooks().add(book))
    if new is not None:
        st.session_state[NEW_KEY] += 1
        show("book", new)


def _draw_entry(entry: BookEntry) -> None:
    with st.container(border=True, gap="xsmall", key=f"lorebook_card_{entry.key}"):
        if entry.book is None:
            st.markdown(f":red[:material/error:] **{escape(shortened(entry.name, NAME_CHARS))}**")
            if entry.error is not None:
                st.caption(sentence(entry.error))
            st.button(tr("characters.look"), key=f"lorebook_open_{entry.key}", on_click=show, args=("book", entry.key))
            return
        with st.container(horizontal=True, vertical_alignment="center"):
            st.button(escape(shortened(visible(entry.name), NAME_CHARS)), key=f"lorebook_open_{entry.key}",
                      icon=":material/menu_book:", on_click=show, args=("book", entry.key))  # fmt: skip
            st.caption(count_words(entry.book.num_entries), width="content")
            if entry.book.in_all_chats:
                st.markdown(f":green-badge[{tr('lorebooks.in_all_chats')}]", width="content")
            if has_book_changes(entry.key):
                st.markdown(f":orange-badge[:material/edit: {tr('characters.unsaved')}]", width="content")


def count_words(count: int) -> str:
    return tr("lorebooks.entry" if count == 1 else "lorebooks.entries", count=count)
