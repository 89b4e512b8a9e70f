"""SillyTavern's backup of personas, read and written.

Its JSON has `personas` (a picture's file name to a name), `persona_descriptions` (by the same names) and
`default_persona`. Pictures are files of their own there and are not in it.
"""

from __future__ import annotations

from typing import Any

from core.personas.character import CharacterError
from core.personas.fields import read_name
from core.personas.parse import decode_text, parse_json, write_json
from core.personas.user import MAX_NAME_CHARS, Personas, UserPersona

PICTURE = ".png"
# A description that stands with the other texts of SillyTavern's prompt, as it does here.
IN_PROMPT = 0
MAX_PERSONAS = 5000


def read_backup(file: str, content: bytes) -> tuple[Personas, int]:
    """The personas of a backup, and how many stand elsewhere in SillyTavern's prompt. Raises CharacterError."""
    values = parse_json(file, decode_text(file, content))
    names, described = values.get("personas"), values.get("persona_descriptions")
    if not isinstance(names, dict) or not isinstance(described, dict | None) or not names:
        raise CharacterError("persona_backup_unknown", file=file)
    if len(names) > MAX_PERSONAS:
        raise CharacterError("persona_backup_large", file=file, count=len(names), limit=MAX_PERSONAS)
    by_key: dict[str, UserPersona] = {}
    remembered: dict[str, str] = {}
    num_elsewhere = 0
    for key, name in names.items():
        more = (described or {}).get(key)
        more = more if isinstance(more, dict) else {}
        description = more.get("description")
        description = description if isinstance(description, str) else ""
        num_elsewhere += bool(description.strip()) and more.get("position", IN_PROMPT) != IN_PROMPT
        by_key[key] = UserPersona(read_name(name)[:MAX_NAME_CHARS], description)
        remembered.update((character, key) for character in _characters(more))
    default = values.get("default_persona")
    if not isinstance(default, str) or default not in by_key:
        default = next(iter(by_key))
    return Personas(by_key, default, remembered), num_elsewhere


def write_backup(personas: Personas) -> str:
    """The reverse. SillyTavern shows a persona only beside a picture, which it draws itself where there is none."""
    characters: dict[str, list[dict[str, str]]] = {}
    for character, key in personas.of_characters.items():
        characters.setdefault(key, []).append({"type": "character", "id": character + PICTURE})
    return write_json({
        "personas": {key + PICTURE: one.name for key, one in personas.by_key.items()},
        "persona_descriptions": {
            key + PICTURE: {"description": one.description, "position": IN_PROMPT,
                            "connections": characters.get(key, [])}
            for key, one in personas.by_key.items()
        },
        "default_persona": personas.default + PICTURE,
    })  # fmt: skip


def _characters(more: dict[str, Any]) -> list[str]:
    """The keys of the characters that remember a persona: SillyTavern names them by their pictures."""
    connections = more.get("connections")
    found = [one for one in connections if isinstance(one, dict)] if isinstance(connections, list) else []
    names = [one.get("id") for one in found if one.get("type") == "character"]
    return [name.removesuffix(PICTURE) for name in names if isinstance(name, str) and name.endswith(PICTURE)]
