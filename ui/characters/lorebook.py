"""A lorebook in the form: its entries as a table, one of them as a form, its own settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from core.personas.lore_editing import (
    add_entry,
    book_values,
    can_change_entries,
    entry_indexes,
    entry_values,
    remove_entry,
)
from ui.characters.lore_draft import LoreDraft, collect, find, note_typed, take_table
from ui.shared.i18n import text, tr
from ui.shared.identity import begin_with, key_of
from ui.shared.markdown import escape, shortened

CHOICE = "character_lore_choice"
TEXT_CHARS, KEYS_CHARS = 90, 40
MAX_NUMBER = 10**15
ROW_HEIGHT, MAX_HEIGHT = 35, 300
MAX_FOREIGN = 30


def draw_lorebook(draft: LoreDraft) -> None:
    """The entries and settings of a character's lorebook, or of one of its own."""
    book = draft.book
    if not can_change_entries(book):
        st.info(tr("characters.lore_foreign"), icon=":material/info:")
        return
    indexes = entry_indexes(book)
    if indexes:
        _draw_table(draft)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.button(tr("characters.lore_add"), key=f"lorebook_add_{draft.number}", icon=":material/add:",
                  on_click=_add, args=(draft.number,))  # fmt: skip
        index = _choose(draft, indexes) if indexes else None
    if index is not None:
        _draw_entry(draft, index)
    if indexes:
        _draw_settings(draft)


def _draw_table(draft: LoreDraft) -> None:
    book = draft.table_book
    rows = [_row(entry_values(book, index)) for index in entry_indexes(book)]
    key = draft.table_key()
    columns = st.column_config
    st.data_editor(
        pd.DataFrame(rows),
        key=key,
        hide_index=True,
        height=min(MAX_HEIGHT, ROW_HEIGHT * (len(rows) + 1) + 3),
        column_config={
            "enabled": columns.CheckboxColumn(text("characters.lore_enabled"), width=70),
            "keys": columns.ListColumn(text("characters.lore_keys"), width="medium"),
            "content": columns.TextColumn(text("characters.lore_content"), disabled=True),
            "constant": columns.CheckboxColumn(text("characters.lore_constant"), width=80),
            "insertion_order": columns.NumberColumn(text("characters.lore_order"), step=1, width=70,
                                                    min_value=-MAX_NUMBER, max_value=MAX_NUMBER),
        },
        on_change=take_table,
        args=(draft.number, draft.places, key),
    )  # fmt: skip


def _row(values: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: values[name] for name in ("enabled", "keys", "content", "constant", "insertion_order")}
    return shown | {"content": shortened(values["content"], TEXT_CHARS)}


def _choose(draft: LoreDraft, indexes: list[int]) -> int:
    """The entry that the form below shows."""
    book = draft.book
    if draft.entry not in indexes:
        draft.entry = indexes[0]
    names = {index: _entry_name(number, entry_values(book, index)) for number, index in enumerate(indexes, start=1)}
    key = key_of(CHOICE, draft.edition, draft.entry, words=names.values())
    st.selectbox(tr("characters.lore_choose"), indexes, key=key, format_func=names.__getitem__,
                 on_change=_show_entry, args=(draft.number, key))  # fmt: skip
    return draft.entry


def _show_entry(number: int, key: str) -> None:
    draft = find(number)
    if draft is not None:
        draft.entry = st.session_state[key]


def _entry_name(number: int, values: Mapping[str, Any]) -> str:
    words = values["name"] or ", ".join(values["keys"]) or values["content"] or text("characters.lore_new")
    return f"{number} · {shortened(words, KEYS_CHARS)}"


def _draw_entry(draft: LoreDraft, index: int) -> None:
    values = entry_values(draft.book, index)

    def field(widget: Callable[..., Any], name: str, **options: Any) -> None:
        key = draft.lore_key(name, index)
        begin_with(key, values[name])
        widget(tr(f"characters.lore_{name}"), key=key, on_change=note_typed, args=(draft.number,), **options)

    with st.container(border=True, key="lorebook_entry"):
        field(st.text_input, "name")
        for name in ("keys", "secondary_keys"):
            held = st.session_state.get(draft.lore_key(name, index), values[name])
            options = list(dict.fromkeys([*values[name], *held]))
            field(st.multiselect, name, options=options, accept_new_options=True, format_func=escape,
                  help=tr(f"characters.lore_{name}_help"), placeholder=tr("characters.tags_hint"))  # fmt: skip
        field(st.text_area, "content", height=140)
        with st.container(horizontal=True):
            for name in ("enabled", "constant", "case_sensitive", "use_regex"):
                field(st.checkbox, name, help=tr(f"characters.lore_{name}_help"))
        numbers = {"step": 1, "min_value": -MAX_NUMBER, "max_value": MAX_NUMBER}
        left, middle, right = st.columns(3)
        with left:
            field(st.number_input, "insertion_order", help=tr("characters.lore_order_help"), **numbers)
        with middle:
            field(st.number_input, "priority", help=tr("characters.lore_priority_help"), **numbers)
        with right:
            places = {name: text(f"characters.lore_{name}") for name in ("before_char", "after_char")}
            field(st.selectbox, "position", options=list(places), format_func=places.__getitem__)
        mark = f"{index}_{draft.places}"
        with st.popover(tr("characters.lore_remove"), icon=":material/delete:", key=f"lorebook_ask_{mark}"):
            st.markdown(tr("characters.lore_remove_question"))
            st.button(tr("characters.lore_remove_yes"), key=f"lorebook_remove_{mark}", type="primary",
                      on_click=_remove, args=(draft.number, draft.places, index))  # fmt: skip


def _draw_settings(draft: LoreDraft) -> None:
    values = book_values(draft.book)
    for name, value in values.items():
        begin_with(draft.lore_key(name), value)
    with st.expander(tr("characters.lore_settings"), icon=":material/tune:", key="lorebook_settings"):
        for name in ("scan_depth", "token_budget"):
            st.number_input(tr(f"characters.lore_{name}"), min_value=0, max_value=MAX_NUMBER, step=1,
                            key=draft.lore_key(name), help=tr(f"characters.lore_{name}_help"), on_change=note_typed,
                            placeholder=tr("characters.lore_default"), args=(draft.number,))  # fmt: skip
        st.checkbox(tr("characters.lore_recursive_scanning"), key=draft.lore_key("recursive_scanning"),
                    help=tr("characters.lore_recursive_scanning_help"), on_change=note_typed,
                    args=(draft.number,))  # fmt: skip


def draw_foreign(names: Sequence[str]) -> None:
    """What a file holds beyond its form, by the names of the keys; all of it stays."""
    if names:
        shown = ", ".join(map(escape, names[:MAX_FOREIGN]))
        rest = f" … (+{len(names) - MAX_FOREIGN})" if len(names) > MAX_FOREIGN else ""
        st.caption(f":material/inventory_2: {tr('characters.foreign')} {shown}{rest}")


def _add(number: int) -> None:
    draft = collect(number)
    if draft is not None:
        draft.set_book(add_entry(draft.book))
        draft.entry = len(draft.book["entries"]) - 1


def _remove(number: int, places: int, index: int) -> None:
    """The indexes of those after it are others then: a second click finds nothing."""
    draft = collect(number)
    if draft is not None and draft.places == places:
        draft.change_book(remove_entry(draft.book, index))
        draft.renew()
