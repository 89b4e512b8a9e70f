"""A character's texts for the eye: with the two names in them; a chat expands the rest."""

from __future__ import annotations

import re

from core.personas.character import Character
from core.personas.prompt import user_name
from core.personas.user import read_persona
from ui.shared.people import person

NAMES = re.compile(r"\{\{\s*(char|user|bot)\s*\}\}|<(char|user|bot)>", re.IGNORECASE)


def readable(words: str, character: Character, key: str = "") -> str:
    """`words` with the names of the character, whose key is `key`, and of whoever looks at the page."""
    user = user_name(character, read_persona(person(), character=key))
    return NAMES.sub(lambda found: user if (found[1] or found[2]).lower() == "user" else character.called, words)
