"""The character's note: a text within the chat, near its end. SillyTavern keeps it in a card's extensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.personas.lore_entry import NOTE_DEPTH, Role, read_role, whole

KEY = "depth_prompt"


@dataclass(frozen=True, slots=True)
class Note:
    """Its text, with macros, how many messages come after it, and who tells it."""

    text: str = ""
    depth: int = NOTE_DEPTH
    role: Role = "system"


def read_note(extensions: Mapping[str, Any]) -> Note:
    """The note in a card's extensions; an empty one where there is none."""
    given = extensions.get(KEY)
    if not isinstance(given, dict):
        return Note()
    text = given.get("prompt")
    return Note(
        text if isinstance(text, str) else "", whole(given.get("depth"), NOTE_DEPTH), read_role(given.get("role"))
    )


def with_note(extensions: Mapping[str, Any], note: Note) -> dict[str, Any]:
    """The extensions with another note; what else the old one held stays."""
    given = extensions.get(KEY)
    kept = given if isinstance(given, dict) else {}
    return dict(extensions) | {KEY: kept | {"prompt": note.text, "depth": note.depth, "role": note.role}}
