"""Agnai's own export of a character as a card (agnaistic/agnai, common/types/library.ts and common/characters.ts)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.personas.lorebook_formats import read_book

CARD_KEYS = {
    "name": "name",
    "description": "creator_notes",
    "greeting": "first_mes",
    "alternateGreetings": "alternate_greetings",
    "scenario": "scenario",
    "sampleChat": "mes_example",
    "systemPrompt": "system_prompt",
    "postHistoryInstructions": "post_history_instructions",
    "creator": "creator",
    "characterVersion": "character_version",
    "tags": "tags",
}
OWN = "agnai"


def is_agnai(values: Mapping[str, Any]) -> bool:
    return values.get("kind") == "character" or {"persona", "greeting", "sampleChat"} <= values.keys()


def agnai_card(values: Mapping[str, Any]) -> dict[str, Any]:
    """The character as a V2 card, as Agnai exports one; what has no place there is kept in the extensions."""
    rest = {key: value for key, value in values.items() if value is not None}
    data = {name: rest.pop(key) for key, name in CARD_KEYS.items() if key in rest}
    name = data["name"] if isinstance(data.get("name"), str) else ""
    data["description"] = persona_text(name, rest.get("persona"))
    given = rest.pop("extensions", None)
    extensions = dict(given) if isinstance(given, dict) else {}
    if isinstance(rest.get("insert"), dict):
        extensions["depth_prompt"] = rest.pop("insert")
    book = rest.get("characterBook")
    if isinstance(book, dict) and (lorebook := read_book({"kind": "memory"} | book)) is not None:
        data["character_book"] = lorebook
        del rest["characterBook"]
    kept = extensions.get(OWN)
    extensions[OWN] = (kept if isinstance(kept, dict) else {}) | rest
    return {"spec": "chara_card_v2", "spec_version": "2.0", "data": data | {"extensions": extensions}}


def persona_text(name: str, persona: object) -> str:
    """Agnai's attributes as one text, in the form that they were written for: W++, boostyle, SBF, lines, or a text."""
    if isinstance(persona, str):
        return persona
    given = persona.get("attributes") if isinstance(persona, dict) else None
    if not isinstance(persona, dict) or not isinstance(given, dict):
        return ""
    attributes = {str(key): _texts(value) for key, value in given.items()}
    match persona.get("kind"):
        case "wpp":
            lines = [f"{key}({' + '.join(map(_quoted, values))})" for key, values in attributes.items()]
            return "\n".join([f'[character("{name}") {{', *lines, "}]"])
        case "sbf":
            parts = [f"{key}: {', '.join(map(_quoted, values))}" for key, values in attributes.items()]
            return f'[ character: "{name}"; {"; ".join(parts)} ]'
        case "boostyle":
            return " + ".join([name, *(value for values in attributes.values() for value in values)])
        case "text":
            return "\n".join(attributes.get("text", []))
    return "\n".join([f"Name: {name}", *(f"{key}: {', '.join(values)}" for key, values in attributes.items())])


def _texts(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]


def _quoted(text: str) -> str:
    return f'"{text}"'
