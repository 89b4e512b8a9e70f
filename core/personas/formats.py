"""From a file's plain values to a character and back: YAML as text-generation-webui has it, Pygmalion's JSON, character
cards V1 to V3. Knows neither text nor bytes.

Specifications: github.com/malfoyslastname/character-card-spec-v2 (V1, V2), github.com/kwaroran/character-card-spec-v3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from core.personas.agnai import agnai_card, is_agnai
from core.personas.character import Character, CharacterError, compose_context
from core.personas.fields import CARD_FIELDS, FILE_FIELDS, empty_value, read_fields, read_name, write_fields
from core.personas.lore_entry import without_decorators
from core.personas.lorebook_formats import read_book

# Other keys that text-generation-webui takes for a name.
NAME_ALIASES = ("bot", "<|bot|>", "char_name")
YOUR_NAME_ALIASES = ("user", "<|user|>")
PYGMALION_KEYS = {
    "char_name": "name",
    "char_persona": "description",
    "char_greeting": "first_mes",
    "world_scenario": "scenario",
    "example_dialogue": "mes_example",
}
V1_KEYS = ("name", "description", "personality", "scenario", "first_mes", "mes_example")
V1_ONLY_KEYS = ("first_mes", "mes_example")
# One of these makes a file a character.
TELLING_KEYS = ("name", *NAME_ALIASES, "greeting", "context", "description", "personality", "example_dialogue")
# One of these holds the messages of a chat, whose name is no character's.
CHAT_KEYS = ("messages", "chat_messages", "conversations", "mapping", "internal", "data_visible", "chat_metadata")
# Where a card's extensions keep what a card has no field for.
OWN = "llamadeck"
# Under this key a file of ours keeps what a card held beyond the fields.
CARD_PARTS = ("data", "outer")
SPECS = {2: ("chara_card_v2", "2.0"), 3: ("chara_card_v3", "3.0")}


def read_object(file: str, values: Mapping[str, Any]) -> Character:
    """The character in `values`, whichever format they are in. Its name may be empty: a file's name may stand for it.

    Raises CharacterError where they hold none.
    """
    if (book := read_book(values)) is not None:
        raise CharacterError("card_is_lorebook", file=file, count=len(book["entries"]))
    if isinstance(values.get("data"), dict):
        return read_card(values)
    if is_agnai(values):
        return read_card(agnai_card(values))
    if any(key in values for key in (*V1_ONLY_KEYS, "char_persona", "char_greeting", "world_scenario")):
        return read_v1(values)
    if any(isinstance(values.get(key), (list, dict)) for key in CHAT_KEYS):
        raise CharacterError("card_is_chat", file=file)
    if any(key in values for key in TELLING_KEYS):
        return read_file(values)
    raise CharacterError("card_no_character", file=file)


def read_file(values: Mapping[str, Any]) -> Character:
    """A file of ours, or of text-generation-webui."""
    values = dict(values)
    for key, aliases in (("name", NAME_ALIASES), ("your_name", YOUR_NAME_ALIASES)):
        if not read_name(values.get(key)):
            alias = next((alias for alias in aliases if read_name(values.get(alias))), None)
            if alias is not None:
                values[key] = values.pop(alias)
    extra = {part: values["card"][part] for part in CARD_PARTS if part in values["card"]} if _has_card(values) else {}
    if extra:
        del values["card"]
    found, rest = read_fields(values, FILE_FIELDS)
    if found.get("context") == _composed(found):
        # It was written for text-generation-webui, which knows only this field.
        del found["context"]
    return _character(found, extra | {"file": rest})


def write_file(character: Character) -> dict[str, Any]:
    """A file of ours: text-generation-webui's own keys first, all that it does not know in further keys."""
    written = write_fields(character, FILE_FIELDS, character.extra.get("file", {}))
    if "context" not in written and character.about:
        written["context"] = character.about
    card = {part: character.extra[part] for part in CARD_PARTS if character.extra.get(part)}
    order = [key for key in FILE_FIELDS if key in written]
    return {key: written[key] for key in order} | written | ({"card": card} if card else {})


def read_card(values: Mapping[str, Any]) -> Character:
    """A card V2 or V3, of any later version too: what is not known is kept."""
    data = {key: value for key, value in values["data"].items() if not (value is None and key in CARD_FIELDS)}
    outer = {key: value for key, value in values.items() if key not in ("spec", "spec_version", "data")}
    # Copies for programs that know only V1: that they are there is all to remember, they follow the data.
    outer |= dict.fromkeys((key for key in V1_KEYS if key in outer), "")
    if values.get("spec") == SPECS[3][0] and data.get("group_only_greetings") == []:
        # Every V3 card has it.
        del data["group_only_greetings"]
    if newer_version(values):
        outer["spec_version"] = values["spec_version"]
    found, rest = read_fields(data, CARD_FIELDS)
    found, rest, file = _take_own(found, rest)
    return _character(found, {"file": file, "data": rest, "outer": outer})


def read_v1(values: Mapping[str, Any]) -> Character:
    """A card V1, one of Pygmalion's, or both in one, as some programs write it: what one leaves empty the other has."""
    known = {key: values[key] for key in V1_KEYS if key in values}
    used = [key for key, card_key in PYGMALION_KEYS.items() if values.get(key) and not known.get(card_key)]
    known |= {PYGMALION_KEYS[key]: values[key] for key in used}
    found, rest = read_fields(known, CARD_FIELDS)
    outer = {key: value for key, value in values.items() if key not in (*V1_KEYS, *used)}
    return _character(found, {"data": rest, "outer": outer})


def write_card(character: Character, version: Literal[2, 3]) -> dict[str, Any]:
    """A card of this version. A V2 card keeps V3's fields too: its specification lets every program keep more."""
    spec, spec_version = SPECS[version]
    data = {key: empty_value(field) for key, field in CARD_FIELDS.items() if field.is_mandatory}
    data |= write_fields(character, CARD_FIELDS, character.extra.get("data", {}))
    own = _own(character)
    if "description_is" in own:
        data["description"] = character.context
    if own:
        given = character.extensions.get(OWN)
        data["extensions"] = dict(character.extensions) | {OWN: (given if isinstance(given, dict) else {}) | own}
    outer = {key: data[key] if key in V1_KEYS else value for key, value in character.extra.get("outer", {}).items()}
    if version == 3:
        spec_version = outer.get("spec_version", spec_version)
        data.setdefault("group_only_greetings", [])
        data |= _with_use_regex(data)
    return {"spec": spec, "spec_version": spec_version, "data": data} | {
        key: value for key, value in outer.items() if key != "spec_version"
    }


def write_backfill(character: Character) -> dict[str, Any]:
    """The V2 card beside a V3 card in one picture, for programs that would show a decorator to the model."""
    card = write_card(character, 2)
    if character.lorebook:
        card["data"]["character_book"] = without_decorators(character.lorebook)
    return card


def newer_version(values: Mapping[str, Any]) -> str:
    """The version of a V3 card that is newer than this program's, empty for every other."""
    version = values.get("spec_version")
    try:
        is_newer = values.get("spec") == SPECS[3][0] and float(str(version)) > 3.0
    except ValueError:
        return ""
    return str(version) if is_newer else ""


def _character(found: dict[str, Any], extra: Mapping[str, Mapping[str, Any]]) -> Character:
    kept = {part: values for part, values in extra.items() if values}
    return Character(**({"name": ""} | found), extra=kept)


def _composed(found: Mapping[str, Any]) -> str:
    return compose_context(*(found.get(key, "") for key in ("description", "personality", "scenario")))


def _has_card(values: Mapping[str, Any]) -> bool:
    card = values.get("card")
    return isinstance(card, dict) and bool(card) and all(
        part in CARD_PARTS and isinstance(held, dict) and bool(held) for part, held in card.items()
    )  # fmt: skip


def _own(character: Character) -> dict[str, Any]:
    """What a card has no field for. A context alone becomes the description, so that every program reads it."""
    own: dict[str, Any] = {}
    if character.context:
        is_alone = not (character.description or character.personality or character.scenario)
        own |= {"description_is": "context"} if is_alone else {"context": character.context}
    if character.your_name:
        own["your_name"] = character.your_name
    if character.extra.get("file"):
        own["file"] = character.extra["file"]
    return own


def _take_own(found: dict[str, Any], rest: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], Mapping[str, Any]]:
    """The reverse of _own: fields and rest of a card without what stood in its extensions for us, and "file"."""
    extensions = found.get("extensions", {})
    own = extensions.get(OWN)
    if not isinstance(own, dict):
        return found, rest, {}
    found, kept = dict(found), dict(own)
    if kept.pop("description_is", None) == "context":
        found["context"] = found.pop("description", "")
    for key in ("context", "your_name"):
        if isinstance(kept.get(key), str):
            found[key] = kept.pop(key)
    file = kept.pop("file") if isinstance(kept.get("file"), dict) else {}
    others = {key: value for key, value in extensions.items() if key != OWN}
    found["extensions"] = others | ({OWN: kept} if kept else {})
    return found, rest, file


def _with_use_regex(data: Mapping[str, Any]) -> dict[str, Any]:
    """V3 wants use_regex in every entry of a lorebook."""
    book = data.get("character_book")
    if not isinstance(book, dict) or not isinstance(book.get("entries"), list):
        return {}
    entries = [{"use_regex": False} | entry if isinstance(entry, dict) else entry for entry in book["entries"]]
    return {"character_book": book | {"entries": entries}}
