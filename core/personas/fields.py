"""How files and cards name a character's fields, and what of a file no field can say."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from core.common.values import printable
from core.personas.character import Character


@dataclass(frozen=True, slots=True)
class Field:
    """One field of Character: its key in a file of ours, its key in a card (None: cards have none), its kind."""

    attribute: str
    in_file: str
    in_card: str | None
    kind: str = "text"
    # Whether the key is there where the field is empty: the specifications want it in every card.
    is_mandatory: bool = True


FIELDS = (
    Field("name", "name", "name", "name"),
    Field("greeting", "greeting", "first_mes"),
    Field("context", "context", None),
    Field("description", "description", "description"),
    Field("personality", "personality", "personality"),
    Field("scenario", "scenario", "scenario"),
    Field("example_dialogue", "example_dialogue", "mes_example"),
    Field("your_name", "your_name", None, "name"),
    Field("alternate_greetings", "alternate_greetings", "alternate_greetings", "texts"),
    Field("system_prompt", "system_prompt", "system_prompt"),
    Field("post_history_instructions", "post_history_instructions", "post_history_instructions"),
    Field("nickname", "nickname", "nickname", "name", is_mandatory=False),
    Field("creator", "creator", "creator"),
    Field("creator_notes", "creator_notes", "creator_notes"),
    Field("tags", "tags", "tags", "tags"),
    Field("version", "version", "character_version"),
    Field("lorebook", "lorebook", "character_book", "object", is_mandatory=False),
    Field("extensions", "extensions", "extensions", "object"),
)
FILE_FIELDS = {field.in_file: replace(field, is_mandatory=False) for field in FIELDS}
CARD_FIELDS = {field.in_card: field for field in FIELDS if field.in_card is not None}

# V3's own fields that something is done with, though Character has no field for them.
OTHER_CARD_FIELDS = ("assets", "creator_notes_multilingual", "group_only_greetings")


def read_fields(values: Mapping[str, Any], fields: Mapping[str, Field]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields that `values` hold, by attribute, and the rest: what would be lost if only these were written.

    A value of another kind than the field's is read as far as that goes, and is in the rest too.
    """
    found, rest = {}, {}
    for key, value in values.items():
        field = fields.get(key)
        if field is None:
            rest[key] = value
            continue
        read = READERS[field.kind](value)
        if read:
            found[field.attribute] = read
        if _written(read) != value or not (read or field.is_mandatory):
            rest[key] = value
    return found, rest


def write_fields(character: Character, fields: Mapping[str, Field], rest: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of read_fields, without empty fields.

    A value of the rest is written as it was read, unless its field has changed since.
    """
    written: dict[str, Any] = {}
    for key, field in fields.items():
        value = getattr(character, field.attribute)
        if key in rest and READERS[field.kind](rest[key]) == value:
            written[key] = rest[key]
        elif value:
            written[key] = _written(value)
    return written | {key: value for key, value in rest.items() if key not in fields}


def empty_value(field: Field) -> Any:
    """What a card says for a field that is empty."""
    return _written(READERS[field.kind](None))


# Letters that nobody sees: fillers of Hangul and Khmer, a blank of Braille, a joiner of marks.
UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
# They join the parts of an emoji, and keep apart the letters of some scripts.
JOINERS = "\u200c\u200d"


def read_name(value: object) -> str:
    """A name on one line, without what is not seen: control characters, and those that turn what stands beside them."""
    name = " ".join("".join(_seen(letter) for letter in _text(value)).split())
    return name if name.strip(JOINERS + " ") else ""


def visible(text: str) -> str:
    """A name as it is: what nobody sees in it, or what turns the words beside it, stands there by its number."""
    pairs = zip("\0" + text, text, strict=False)
    return printable("".join(_named(letter) if _is_hidden(letter, before) else letter for before, letter in pairs))


def _is_hidden(letter: str, before: str) -> bool:
    # No Latin letters are joined, so a joiner after one only makes two names look alike.
    return unicodedata.category(letter) == "Cc" or _is_unseen(letter) or (letter in JOINERS and before.isascii())


def _named(letter: str) -> str:
    return f"[U+{ord(letter):04X}]"


def _is_unseen(letter: str) -> bool:
    return letter in UNSEEN or (unicodedata.category(letter) == "Cf" and letter not in JOINERS)


def _seen(letter: str) -> str:
    return " " if unicodedata.category(letter) == "Cc" else "" if _is_unseen(letter) else letter


def _written(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (str, int, float)) else ""


def _texts(value: object) -> tuple[str, ...]:
    """A list of texts, or a lone text as a list of one."""
    entries = value if isinstance(value, list) else [value]
    return tuple(_text(entry) for entry in entries if isinstance(entry, (str, int, float)))


def _tags(value: object) -> tuple[str, ...]:
    """A list, or one text with commas."""
    entries = value.split(",") if isinstance(value, str) else value
    return tuple(tag for tag in (text.strip() for text in _texts(entries)) if tag)


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


READERS: Mapping[str, Callable[[Any], Any]] = {
    "name": read_name,
    "text": _text,
    "texts": _texts,
    "tags": _tags,
    "object": _object,
}
