"""The lorebooks that a character has beside its own, by their keys or names in its extensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.personas.character import Character
from core.personas.formats import OWN

KEY = "lorebooks"
# SillyTavern's: the one lorebook of a character. Where the card holds one, that is the same book.
WORLD = "world"
MAX_ATTACHED = 50


def attached_names(character: Character) -> tuple[str, ...]:
    """The lorebooks that count for a character in every chat, in this order; some may not be there."""
    world = character.extensions.get(WORLD)
    return read_attached(character.extensions) or (
        (world.strip(),) if isinstance(world, str) and world.strip() and not character.lorebook else ()
    )


def read_attached(extensions: Mapping[str, Any]) -> tuple[str, ...]:
    """Those that were chosen here."""
    own = extensions.get(OWN)
    given = own.get(KEY) if isinstance(own, dict) else None
    names = [name for name in given if isinstance(name, str) and name] if isinstance(given, list) else []
    return tuple(dict.fromkeys(names))[:MAX_ATTACHED]


def with_attached(extensions: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The extensions with these lorebooks chosen; an empty group of ours goes."""
    given = extensions.get(OWN)
    own = {key: value for key, value in given.items() if key != KEY} if isinstance(given, dict) else {}
    own |= {KEY: list(names)} if names else {}
    others = {key: value for key, value in extensions.items() if key != OWN}
    return others | ({OWN: own} if own else {})
