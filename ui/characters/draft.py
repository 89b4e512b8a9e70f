"""A character that is being written, with what was read before; outlives reruns and switches of pages.

Widgets are only views of it: their values go into the draft whenever they change, and come from it when they are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import streamlit as st

from core.personas.character import Character, compose_context
from core.personas.fields import read_name
from core.personas.listing import Stamp
from core.personas.lore_editing import book_values, change_book, change_entry, entry_indexes, entry_values
from core.personas.lore_entry import NOTE_DEPTH
from core.personas.note import Note, read_note, with_note
from ui.characters.picture import PictureChoice
from ui.shared.resources import characters

DRAFTS_KEY = "characters_drafts"
# Every widget of the form begins so.
FIELD, LORE = "character_field_", "character_lore_"
TEXT_FIELDS = ("name", "context", "description", "personality", "scenario", "greeting", "example_dialogue",
               "your_name", "system_prompt", "post_history_instructions", "nickname", "creator", "creator_notes",
               "version")  # fmt: skip
NAME_FIELDS = ("name", "nickname", "your_name")
PARTS = ("description", "personality", "scenario")
NEW_CHARACTER = Character("")
_numbers = count(1)


@dataclass
class Draft:
    """A form's content. `key` and `base` say which file it was read from and what was in it; a new one has none.

    `number` is this draft's alone: what a button does is for the draft that it was drawn for. The keys of its widgets
    end with an edition, which is another one when the draft changes behind them: none of them shows or sends what
    belongs to another draft, or to an older state of this one.
    """

    key: str | None
    base: Character
    now: Character
    # What the picture's file was when the draft was begun.
    picture_stamp: Stamp = None
    picture: PictureChoice = field(default_factory=PictureChoice)
    # Whether one free text says who the character is, or a description, a personality and a scenario.
    is_one_text: bool = True
    # What the parts were when they became one text, so that they can be taken apart again: (text, parts).
    taken_together: tuple[str, dict[str, str]] | None = None
    # The lorebook that the table was drawn with; the table's own changes are counted from it.
    table_book: Mapping[str, Any] = field(default_factory=dict)
    number: int = field(default_factory=_numbers.__next__)
    edition: int = field(default_factory=_numbers.__next__)
    lore_edition: int = field(default_factory=_numbers.__next__)
    table_edition: int = field(default_factory=_numbers.__next__)
    # Another one when entries or greetings have other places than before.
    places: int = field(default_factory=_numbers.__next__)

    @property
    def is_changed(self) -> bool:
        return self.now != self.base or self.picture.is_changed

    def field_key(self, name: str) -> str:
        return f"{FIELD}{name}_{self.edition}"

    def lore_key(self, name: str, index: int | None = None) -> str:
        """The key of a field of the lorebook, or of one of its entries."""
        return f"{LORE}{name if index is None else f'{index}_{name}'}_{self.lore_edition}"

    def table_key(self) -> str:
        return f"lorebook_table_{self.table_edition}"

    def renew(self) -> None:
        """Let all widgets be drawn from the draft again."""
        self.edition, self.places = next(_numbers), next(_numbers)
        self.renew_lore()
        self.table_book, self.table_edition = self.now.lorebook, next(_numbers)

    def renew_lore(self) -> None:
        self.lore_edition = next(_numbers)


def drafts() -> dict[str | None, Draft]:
    """This tab's drafts by the character's key; None for the new character."""
    found: dict[str | None, Draft] = st.session_state.setdefault(DRAFTS_KEY, {})
    return found


def draft_of(key: str | None) -> Draft:
    """The draft of a character, begun now where there is none. Raises DeckError for a file that is gone or broken."""
    if key not in drafts():
        entry = characters().need(key) if key is not None else None
        read = characters().character(key) if key is not None else NEW_CHARACTER
        in_parts = not read.context and any(getattr(read, part) for part in PARTS)
        stamp = entry.picture_stamp if entry is not None else None
        drafts()[key] = Draft(key, read, read, stamp, is_one_text=not in_parts, table_book=read.lorebook)
    return drafts()[key]


def renew_drafts() -> None:
    """On arrival from another page: the browser has forgotten its fields, where the server may not have."""
    for draft in drafts().values():
        draft.renew()


def has_changes(key: str | None) -> bool:
    draft = drafts().get(key)
    return draft is not None and draft.is_changed


def find(number: int) -> Draft | None:
    """The draft that a widget was drawn for; None where it is gone."""
    return next((draft for draft in drafts().values() if draft.number == number), None)


def collect(number: int) -> Draft | None:
    """The draft, with what the form's widgets hold by now.

    None where the same click has ended it already: callbacks come in any order.
    """
    draft = find(number)
    if draft is None:
        return None
    state = st.session_state
    changes: dict[str, Any] = {}
    for name in TEXT_FIELDS:
        key, old = draft.field_key(name), getattr(draft.now, name)
        if key in state and not _is_same(old, typed := str(state[key] or "")):
            changes[name] = read_name(typed) if name in NAME_FIELDS else typed
    if (key := draft.field_key("tags")) in state:
        tags = tuple(dict.fromkeys(tag.strip() for tag in state[key] if tag.strip()))
        if tags != tuple(dict.fromkeys(draft.now.tags)):
            changes["tags"] = tags
    others = []
    for place, old in enumerate(draft.now.alternate_greetings):
        typed = str(state.get(draft.field_key(f"greeting_{place}"), old) or "")
        others.append(old if _is_same(old, typed) else typed)
    draft.now = replace(draft.now, **changes, alternate_greetings=tuple(others))
    _collect_note(draft)
    _collect_book(draft)
    return draft


def note_typed(number: int) -> None:
    """For the on_change of the form's widgets."""
    collect(number)


def _is_same(old: str, typed: str) -> bool:
    """A field in a browser knows one kind of line end; a file's own kind is no change."""
    return old == typed or "\n".join(old.splitlines()) == typed


def _collect_note(draft: Draft) -> None:
    old, state = read_note(draft.now.extensions), st.session_state
    typed = str(state.get(draft.field_key("note_text"), old.text) or "")
    depth = state.get(draft.field_key("note_depth"), old.depth)
    role = state.get(draft.field_key("note_role"), old.role)
    note = Note(old.text if _is_same(old.text, typed) else typed, NOTE_DEPTH if depth is None else int(depth), role)
    if note != old:
        draft.now = replace(draft.now, extensions=with_note(draft.now.extensions, note))


def _collect_book(draft: Draft) -> None:
    book, state = draft.now.lorebook, st.session_state
    old = book_values(book)
    typed = {name: state.get(draft.lore_key(name), value) for name, value in old.items()}
    changes = {name: value for name, value in typed.items() if value != old[name]}
    if changes:
        book = change_book(book, changes)
    for index in entry_indexes(book):
        old = entry_values(book, index)
        typed = {name: state.get(draft.lore_key(name, index), value) for name, value in old.items()}
        changed = {name: value for name, value in typed.items() if value != old[name]}
        if changed:
            book = change_entry(book, index, changed)
    if book != draft.now.lorebook:
        set_book(draft, book)


def set_book(draft: Draft, book: Mapping[str, Any]) -> None:
    """Change the lorebook other than by its table, which is drawn anew then."""
    draft.now = replace(draft.now, lorebook=book)
    draft.table_book, draft.table_edition = book, next(_numbers)


def take_table(number: int, places: int, table: str) -> None:
    """Take over what was changed in the table with the lorebook, a widget by the name of `table`."""
    draft, edits = collect(number), st.session_state.get(table)
    if draft is None or edits is None or draft.places != places:
        return
    book, indexes = draft.now.lorebook, entry_indexes(draft.table_book)
    for row, changes in edits["edited_rows"].items():
        # A cell that was emptied is None.
        kept = {name: value for name, value in changes.items() if value is not None or name == "keys"}
        book = change_entry(book, indexes[int(row)], {name: value or [] if name == "keys" else value
                                                      for name, value in kept.items()})  # fmt: skip
    draft.now = replace(draft.now, lorebook=book)
    draft.renew_lore()


def set_shape(number: int, is_one_text: bool) -> None:
    """Describe the character by one free text, or in three parts. What is written stays, in the other shape."""
    draft = collect(number)
    if draft is None or is_one_text == draft.is_one_text:
        return
    draft.is_one_text = is_one_text
    _reshape(draft)
    draft.renew()


def _reshape(draft: Draft) -> None:
    if draft.is_one_text:
        parts = {part: str(getattr(draft.now, part)) for part in PARTS}
        together = draft.now.context or compose_context(**parts)
        draft.taken_together = (together, parts)
        draft.now = replace(draft.now, context=together, description="", personality="", scenario="")
        return
    together, parts = draft.taken_together or ("", {})
    if not parts or draft.now.context != together:
        # It was changed since, or never was in parts.
        parts = {"description": draft.now.context or draft.now.description}
    changes: dict[str, Any] = {"context": "", **parts}
    draft.now = replace(draft.now, **changes)
