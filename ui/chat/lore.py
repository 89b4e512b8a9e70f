"""The lorebooks of a chat: which count in it, and what of them the model reads now."""

from __future__ import annotations

import streamlit as st

from core.chat.prompt_context import Prompt
from core.chat.records import ChatInfo
from core.common.errors import DeckError
from core.personas.attached import MAX_ATTACHED, attached_names, read_attached
from core.personas.fields import visible
from core.personas.lorebook import LeftOut, Lore
from core.personas.lorebooks import BookEntry
from ui.chat.feedback import show_errors
from ui.chat.new_chat import NEW_ID, new_values
from ui.chat.session import number_of
from ui.chat.setup import find_book, find_character
from ui.shared.choices import told_apart
from ui.shared.i18n import tr
from ui.shared.identity import key_of, known_value, note_stored
from ui.shared.lore import entry_words
from ui.shared.markdown import escape, shortened
from ui.shared.resources import chat_store, lorebooks

BOOKS = "chat_lorebooks"
MAX_SHOWN, NAME_CHARS = 30, 60


def draw_lore(info: ChatInfo, tag: str, prompt: Prompt | None) -> None:
    try:
        entries = [entry for entry in lorebooks().entries() if entry.book is not None]
    except DeckError:
        entries = []
    _choose(info, tag, entries)
    if words := _others(info, entries):
        st.caption(words)
    if not entries:
        st.caption(tr("lorebooks.chat_none"))
    st.markdown(f"**{tr('lorebooks.called_up')}**", help=tr("lorebooks.called_up_help"))
    if prompt is None:
        st.caption(tr("lorebooks.called_up_unknown"))
    elif not prompt.lore and not prompt.left_out:
        st.caption(tr("lorebooks.called_up_none"))
    else:
        _draw_entries(prompt.lore, prompt.left_out)


def _choose(info: ChatInfo, tag: str, entries: list[BookEntry]) -> None:
    # A lorebook keeps the name by which the chat calls it: a browser shows a choice by that.
    called = {found.key: name for name in info.lorebooks if (found := find_book(name)) is not None}
    names = {called.get(entry.key, entry.key): entry.name for entry in entries}
    # Those whose files are gone stay, until they are taken out.
    names |= {name: name for name in info.lorebooks if name not in names}
    names = told_apart({key: visible(name or key) for key, name in names.items()})
    stored = list(info.lorebooks)
    key = key_of(BOOKS, tag, stored, words=names.values())
    st.multiselect(tr("lorebooks.of_chat"), list(names), key=key, help=tr("lorebooks.of_chat_help"),
                   format_func=lambda name: names.get(name, name), max_selections=MAX_ATTACHED,
                   placeholder=tr("lorebooks.of_chat_placeholder"), on_change=_set,
                   args=(tag, key, stored))  # fmt: skip


@show_errors
def _set(tag: str, key: str, drawn: list[str]) -> None:
    chosen, number = list(st.session_state[key]), number_of(tag)
    if number == NEW_ID:
        new_values()["lorebooks"] = chosen
    else:
        chat_store().set_lorebooks(number, chosen, known_value(BOOKS, tag, drawn))
        note_stored(BOOKS, tag, chosen)


def _others(info: ChatInfo, entries: list[BookEntry]) -> str:
    """What counts besides: the characters' lorebooks, and those of all chats."""
    of_all = [entry.name for entry in entries if entry.book is not None and entry.book.in_all_chats]
    cast = [found[1] for name in info.cast if (found := find_character(name)) is not None]
    named = [entry.name for one in cast for name in attached_names(one) if (entry := find_book(name)) is not None]
    own = [one.name for one in cast if one.lorebook.get("entries")]
    told = {"of_characters": [*own, *named], "in_all_chats": of_all}
    lines = [
        f"{tr(f'lorebooks.{kind}')}: {', '.join(escape(shortened(visible(name), NAME_CHARS)) for name in names)}"
        for kind, names in told.items()
        if names
    ]
    return "  \n".join(lines)


def _draw_entries(lore: tuple[Lore, ...], left_out: tuple[LeftOut, ...]) -> None:
    lines = [f"- :green[:material/check:] {entry_words(one.title, one.book)}" for one in lore[:MAX_SHOWN]]
    lines += [
        f"- :gray[:material/block:] {entry_words(one.title, one.book)}: {tr(f'characters.left_out_{one.reason}')}"
        for one in left_out[:MAX_SHOWN]
    ]
    hidden = max(0, len(lore) - MAX_SHOWN) + max(0, len(left_out) - MAX_SHOWN)
    st.markdown("\n".join([*lines, *([f"- … (+{hidden})"] if hidden else [])]))


def missing_books(info: ChatInfo) -> list[str]:
    """The lorebooks that the chat, or one of its characters, was given and that are not there."""
    cast = [found[1] for name in info.cast if (found := find_character(name)) is not None]
    wanted = [*info.lorebooks, *(name for one in cast for name in read_attached(one.extensions))]
    return [name for name in dict.fromkeys(wanted) if find_book(name) is None]
