"""The lorebooks that a character has beside its own: chosen in the form, shown on its page, named in its files."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from core.common.errors import DeckError
from core.personas.attached import MAX_ATTACHED, attached_names, read_attached, with_attached
from core.personas.character import Character
from core.personas.fields import visible
from ui.characters.draft import ATTACHED, Draft
from ui.characters.lore_draft import note_typed
from ui.shared.choices import told_apart
from ui.shared.i18n import tr
from ui.shared.identity import begin_with
from ui.shared.markdown import escape, shortened
from ui.shared.resources import lorebooks

NAME_CHARS = 60


def draw_attached_choice(draft: Draft) -> None:
    names = {name: name for name in read_attached(draft.now.extensions)}
    try:
        named = {name: entry.name for name in names if (entry := lorebooks().find(name)) is not None}
        others = {entry.key: entry.name for entry in lorebooks().entries() if entry.book is not None}
    except DeckError:
        named, others = {}, {}
    names |= named | {key: name for key, name in others.items() if name not in named.values()}
    names = told_apart({key: visible(name or key) for key, name in names.items()})
    key = draft.field_key(ATTACHED)
    begin_with(key, list(read_attached(draft.now.extensions)))
    st.multiselect(tr("lorebooks.of_character"), list(names), key=key, max_selections=MAX_ATTACHED,
                   format_func=lambda name: names.get(name, name),
                   help=tr("lorebooks.of_character_help"), placeholder=tr("lorebooks.of_chat_placeholder"),
                   on_change=note_typed, args=(draft.number,))  # fmt: skip


def draw_attached(character: Character) -> None:
    """Which lorebooks count for a character, and which of them are not there."""
    try:
        found = {name: lorebooks().find(name) for name in attached_names(character)}
    except DeckError:
        return
    there = [escape(shortened(visible(entry.name), NAME_CHARS)) for entry in found.values() if entry is not None]
    gone = [escape(shortened(visible(name), NAME_CHARS)) for name, entry in found.items() if entry is None]
    if there:
        st.caption(f":material/menu_book: {tr('lorebooks.of_character')}: {', '.join(there)}")
    if gone:
        st.caption(f":orange[:material/warning:] {tr('lorebooks.not_there')} {', '.join(gone)}")


def with_book_names(character: Character) -> Character:
    """The character for other machines, where nobody knows the keys of lorebooks but their names."""
    chosen = read_attached(character.extensions)
    if not chosen:
        return character
    names = [entry.name if (entry := lorebooks().find(name)) is not None else name for name in chosen]
    return replace(character, extensions=with_attached(character.extensions, names))
