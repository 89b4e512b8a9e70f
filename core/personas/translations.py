"""A character that brings itself in further languages, as the samples do.

Its card holds them in `extensions.llamadeck.translations`, by language: the fields of a file that differ.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from core.personas.character import Character
from core.personas.fields import FILE_FIELDS, read_fields
from core.personas.formats import OWN

TRANSLATIONS = "translations"


def in_language(character: Character, language: str) -> Character:
    """The character as its readers see it: in their language where it has that, and without the other languages.

    So a copy that one of them changes is theirs, in the one language that they changed.
    """
    ours = character.extensions.get(OWN)
    if not isinstance(ours, dict) or TRANSLATIONS not in ours:
        return character
    given = ours[TRANSLATIONS].get(language) if isinstance(ours[TRANSLATIONS], dict) else None
    fields: dict[str, Any] = read_fields(given, FILE_FIELDS)[0] if isinstance(given, dict) else {}
    others = {name: value for name, value in ours.items() if name != TRANSLATIONS}
    extensions = {name: value for name, value in character.extensions.items() if name != OWN}
    extensions |= {OWN: others} if others else {}
    return replace(character, extensions=extensions | fields.pop("extensions", {}), **fields)
