"""Sentences at import about what of a card or a lorebook has no effect here. All of it is kept, and goes out again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from core.common.errors import DeckError
from core.personas.character import Character, CharacterError
from core.personas.decorators import unknown_decorators
from core.personas.lore_entry import read_entries
from core.personas.macro_names import unknown_macros
from core.personas.patterns import MAX_PATTERN_CHARS, Patterns
from core.personas.sillytavern import ENTRY_FIELDS, character_filter, with_card_names

MAX_NAMES = 12
MAX_NAME_CHARS = 60
# Of a card's extensions those that would change what the model reads, by the names of the programs that write them.
CARD_EXTENSIONS = {
    "regex_scripts": "regex_scripts",
    "tavern_helper": "tavern_helper",
    "TavernHelper_scripts": "TavernHelper_scripts",
    "risuai.customScripts": "RisuAI customScripts",
    "risuai.triggerscript": "RisuAI triggerscript",
    "risuai.virtualscript": "RisuAI virtualscript",
    "risuai.additionalText": "RisuAI additionalText",
}


def character_notices(file: str, character: Character) -> Iterator[DeckError]:
    """What of a character has no effect here."""
    names = [shown for path, shown in CARD_EXTENSIONS.items() if _at(character.extensions, path)]
    texts = (character.about, character.example_dialogue, character.system_prompt, *character.greetings,
             character.post_history_instructions)  # fmt: skip
    yield from _notices(file, names, character.lorebook, texts)
    if _at(character.extensions, "world") and not character.lorebook:
        yield CharacterError("card_world", file=file, name=str(character.extensions["world"])[:MAX_NAME_CHARS])


def book_notices(file: str, book: Mapping[str, Any]) -> Iterator[DeckError]:
    """What of a lorebook has no effect here."""
    return _notices(file, [], book, ())


def _notices(file: str, names: list[str], book: Mapping[str, Any], texts: Iterable[str]) -> Iterator[DeckError]:
    given = book.get("entries")
    entries = [entry for entry in given if isinstance(entry, dict)] if isinstance(given, list) else []
    contents = [entry["content"] for entry in entries if isinstance(entry.get("content"), str)]
    names += _entry_names(entries)
    names += [f"@@{name}" for name in dict.fromkeys(name for text in contents for name in unknown_decorators(text))]
    if names:
        yield CharacterError("card_no_effect", file=file, names=_listed(names))
    if macros := unknown_macros([*texts, *contents]):
        yield CharacterError("card_unknown_macros", file=file, names=_listed(f"{{{{{name}}}}}" for name in macros))
    read = ((entry, key) for entry in read_entries(book) for key in entry.all_keys)
    # What a pattern with macros is, only a chat tells.
    patterns = [one for entry, key in read if "{{" not in key and (one := entry.pattern(key)) is not None]
    wrong = Patterns(patterns).wrong() | {one for one in patterns if len(one.text) > MAX_PATTERN_CHARS}
    if wrong:
        yield CharacterError(
            "card_wrong_patterns", file=file, names=_listed(sorted({f"/{one.text}/{one.flags}" for one in wrong}))
        )


def _entry_names(entries: list[dict[str, Any]]) -> list[str]:
    """The fields without effect that some entry really uses."""
    given = (entry.get("extensions") for entry in entries)
    extensions = [with_card_names(one) for one in given if isinstance(one, dict)]
    unused = [field for field in ENTRY_FIELDS if not field.has_effect]
    names = [
        field.in_card for field in unused if any(_is_used(one.get(field.in_card), field.default) for one in extensions)
    ]
    if any(character_filter(one).get("tags") for one in entries):
        names.append("characterFilter.tags")
    return names


def _is_used(value: object, default: object) -> bool:
    return value is not None and value != default


def _at(values: Mapping[str, Any], path: str) -> Any:
    """What lies at a path such as "risuai.customScripts"; None where nothing does."""
    value: Any = values
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _listed(names: Iterable[str]) -> str:
    """The first names; "…" stands for more."""
    found = [
        name if len(name) <= MAX_NAME_CHARS else name[:MAX_NAME_CHARS] + "…" for name in islice(names, MAX_NAMES + 1)
    ]
    return ", ".join(found[:MAX_NAMES]) + (", …" if len(found) > MAX_NAMES else "")
