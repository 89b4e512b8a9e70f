"""The entries of a lorebook as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.personas.decorators import split_decorators


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry, decorators taken out of its text. `position` is "before_char", "after_char", or a decorator's."""

    keys: tuple[str, ...]
    secondary_keys: tuple[str, ...]
    text: str
    decorators: Mapping[str, str]
    order: float
    priority: float
    is_enabled: bool
    is_constant: bool
    is_case_sensitive: bool
    uses_regex: bool
    position: str

    def number(self, name: str) -> int | None:
        """The value of a decorator that is a number, None where the entry does not have it."""
        return int(self.decorators[name]) if name in self.decorators else None

    def words(self, name: str) -> tuple[str, ...]:
        """The values of a decorator that is a list."""
        return tuple(word.strip() for word in self.decorators.get(name, "").split(",") if word.strip())


def read_entries(book: Mapping[str, Any]) -> list[Entry]:
    """A lorebook's entries in the order in which they are inserted; what is no entry is passed over."""
    given = book.get("entries")
    entries = given if isinstance(given, list) else []
    return sorted((_entry(entry) for entry in entries if isinstance(entry, dict)), key=lambda entry: entry.order)


def without_decorators(book: Mapping[str, Any]) -> dict[str, Any]:
    """The lorebook for programs that would show decorators to the model."""
    given = book.get("entries")
    if not isinstance(given, list):
        return dict(book)
    entries = [
        entry | {"content": split_decorators(entry["content"])[1]}
        if isinstance(entry, dict) and isinstance(entry.get("content"), str)
        else entry
        for entry in given
    ]
    return dict(book) | {"entries": entries}


def _entry(values: Mapping[str, Any]) -> Entry:
    content = values.get("content")
    decorators, text = split_decorators(content if isinstance(content, str) else "")
    order = number(values.get("insertion_order"), 0)
    position = values.get("position")
    return Entry(
        keys=_strings(values.get("keys")),
        secondary_keys=_strings(values.get("secondary_keys")) if values.get("selective") is True else (),
        text=text,
        decorators=decorators,
        order=order,
        priority=number(values.get("priority"), order),
        is_enabled=values.get("enabled") is not False,
        is_constant=values.get("constant") is True,
        is_case_sensitive=values.get("case_sensitive") is True,
        uses_regex=values.get("use_regex") is True,
        position=decorators.get("position") or (position if position == "before_char" else "after_char"),
    )


def number(value: object, default: float) -> float:
    """A number of a card, `default` for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return default
    # A card may say 10**400, which is more than any float.
    return max(min(value, 1e15), -1e15)


def _strings(value: object) -> tuple[str, ...]:
    """A list of texts, or one text with commas between them, as V3 has its secondary keys."""
    entries = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(entry.strip() for entry in entries if isinstance(entry, str) and entry.strip())
