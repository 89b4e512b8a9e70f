"""A character as data, with everything that its file held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.common.errors import InputError

MAX_NAME_CHARS = 200


class CharacterError(InputError):
    """A file, a name or a picture that no character can be made of."""


@dataclass(frozen=True, slots=True)
class Character:
    """One character. Texts are as they were written, macros and all; nothing in it is ever changed in place.

    `context` is one free text, as text-generation-webui has it; `description`, `personality` and `scenario` are the
    same thing in the three parts of a character card. Where a context is there, it is what the model reads.
    `lorebook` is the card's `character_book` as it was read. `extra` holds what no field here can say, by where it
    stood: "file" (a YAML file's further keys), "data" (a card's data) and "outer" (around a card's data).
    """

    name: str
    greeting: str = ""
    alternate_greetings: tuple[str, ...] = ()
    context: str = ""
    description: str = ""
    personality: str = ""
    scenario: str = ""
    example_dialogue: str = ""
    your_name: str = ""
    system_prompt: str = ""
    post_history_instructions: str = ""
    nickname: str = ""
    creator: str = ""
    creator_notes: str = ""
    tags: tuple[str, ...] = ()
    version: str = ""
    lorebook: Mapping[str, Any] = field(default_factory=dict)
    extensions: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def called(self) -> str:
        """What {{char}} stands for."""
        return self.nickname.strip() or self.name

    @property
    def greetings(self) -> tuple[str, ...]:
        """The first messages to choose from, macros unexpanded; the first is the card's own, even where it is empty."""
        return (self.greeting, *self.alternate_greetings)

    @property
    def group_greetings(self) -> tuple[str, ...]:
        """V3's first messages for groups alone, macros unexpanded."""
        given = self.extra.get("data", {}).get("group_only_greetings")
        return tuple(text for text in given if isinstance(text, str)) if isinstance(given, list) else ()

    @property
    def about(self) -> str:
        """Who the character is, as one text with macros."""
        return self.context or compose_context(self.description, self.personality, self.scenario)

    def creator_notes_in(self, language: str) -> str:
        """What its maker says to people, in this language where V3's creator_notes_multilingual has it."""
        given = self.extra.get("data", {}).get("creator_notes_multilingual")
        notes = given.get(language) if isinstance(given, dict) else None
        return notes if isinstance(notes, str) and notes.strip() else self.creator_notes


def compose_context(description: str, personality: str, scenario: str) -> str:
    """The parts of a card as one free text with macros, such as text-generation-webui reads."""
    parts = (
        description.strip(),
        personality.strip() and f"{{{{char}}}}'s personality: {personality.strip()}",
        scenario.strip() and f"Scenario: {scenario.strip()}",
    )
    return "\n\n".join(part for part in parts if part)


def check_name(name: str) -> None:
    """Raise CharacterError for a name that nobody could be called by."""
    if not name.strip():
        raise CharacterError("character_no_name")
    if len(name) > MAX_NAME_CHARS:
        raise CharacterError("character_long_name", name=name[:20], count=len(name), limit=MAX_NAME_CHARS)
