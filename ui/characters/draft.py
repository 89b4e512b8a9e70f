"""A character that is being written, with what was read before; outlives reruns and switches of pages.

Widgets are only views of it: their values go into the draft whenever they change, and come from it when they are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import streamlit as st

from core.personas.attached import read_attached, with_attached
from core.personas.character import Character, compose_context
from core.personas.fields import read_name
from core.personas.listing import Stamp
from core.personas.lore_entry import NOTE_DEPTH
from core.personas.note import Note, read_note, with_note
from ui.characters import lore_draft
from ui.characters.lore_draft import DRAFTS_KEY, LoreDraft, is_same_text
from ui.characters.picture import PictureChoice
from ui.shared.resources import characters

TEXT_FIELDS = ("name", "context", "description", "personality", "scenario", "greeting", "example_dialogue",
               "your_name", "system_prompt", "post_history_instructions", "nickname", "creator", "creator_notes",
               "version")  # fmt: skip
NAME_FIELDS = ("name", "nickname", "your_name")
PARTS = ("description", "personality", "scenario")
ATTACHED = "lorebooks"
NEW_CHARACTER = Character("")


@dataclass
class Draft(LoreDraft):
    """A form's content. `key` and `base` say which file it was read from and what was in it; a new one has none."""

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

    @property
    def is_changed(self) -> bool:
        return self.now != self.base or self.picture.is_changed

    @property
    def book(self) -> Mapping[str, Any]:
        return self.now.lorebook

    def change_book(self, book: Mapping[str, Any]) -> None:
        self.now = replace(self.now, lorebook=book)

    def collect(self) -> None:
        _collect_fields(self)
        _collect_note(self)
        _collect_attached(self)
        self.collect_book()


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
    """The draft of a character that a widget was drawn for; None where it is gone."""
    return _of_character(lore_draft.find(number))


def collect(number: int) -> Draft | None:
    """The draft of a character, with what the form's widgets hold by now; None where it is gone."""
    return _of_character(lore_draft.collect(number))


def _of_character(draft: LoreDraft | None) -> Draft | None:
    return draft if isinstance(draft, Draft) else None


def _collect_fields(draft: Draft) -> None:
    state = st.session_state
    changes: dict[str, Any] = {}
    for name in TEXT_FIELDS:
        key, old = draft.field_key(name), getattr(draft.now, name)
        if key in state and not is_same_text(old, typed := str(state[key] or "")):
            changes[name] = read_name(typed) if name in NAME_FIELDS else typed
    if (key := draft.field_key("tags")) in state:
        tags = tuple(dict.fromkeys(tag.strip() for tag in state[key] if tag.strip()))
        if tags != tuple(dict.fromkeys(draft.now.tags)):
            changes["tags"] = tags
    others = []
    for place, old in enumerate(draft.now.alternate_greetings):
        typed = str(state.get(draft.field_key(f"greeting_{place}"), old) or "")
        others.append(old if is_same_text(old, typed) else typed)
    draft.now = replace(draft.now, **changes, alternate_greetings=tuple(others))


def _collect_note(draft: Draft) -> None:
    old, state = read_note(draft.now.extensions), st.session_state
    typed = str(state.get(draft.field_key("note_text"), old.text) or "")
    depth = state.get(draft.field_key("note_depth"), old.depth)
    role = state.get(draft.field_key("note_role"), old.role)
    note = Note(old.text if is_same_text(old.text, typed) else typed, NOTE_DEPTH if depth is None else int(depth), role)
    if note != old:
        draft.now = replace(draft.now, extensions=with_note(draft.now.extensions, note))


def _collect_attached(draft: Draft) -> None:
    old = read_attached(draft.now.extensions)
    chosen = tuple(st.session_state.get(draft.field_key(ATTACHED), old))
    if chosen != old:
        draft.now = replace(draft.now, extensions=with_attached(draft.now.extensions, chosen))


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
