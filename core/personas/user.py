"""A user's own personas: names, descriptions, pictures, for each who signs in."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.common.codec import Codec
from core.common.errors import DeckError
from core.common.files import regular_size, write_atomically
from core.common.json_file import JsonFile
from core.common.paths import person_dir
from core.common.plain_json import InvalidContent
from core.common.values import printable
from core.personas.character import CharacterError
from core.personas.fields import read_name
from core.personas.parse import parse_yaml, write_yaml
from core.personas.pictures import as_png
from core.personas.png import MAX_PNG_BYTES

FILE, PICTURE = "persona.yaml", "persona.png"
MAX_NAME_CHARS = 200
# Of all names and descriptions together, and of personas and characters that remember one: the file is read and written
# whole, and what is too large to be read would be lost with all that was there before.
MAX_ALL_CHARS, MAX_ENTRIES = 2_000_000, 20_000
# The key of the one persona that files from before there were several hold.
FIRST = "1"
KEY = re.compile("[0-9a-z]{1,32}")


@dataclass(frozen=True, slots=True)
class UserPersona:
    """Who the user is in a chat: both may be empty. The description is part of the system text."""

    name: str = ""
    description: str = ""

    @property
    def is_empty(self) -> bool:
        return not (self.name.strip() or self.description.strip())


@dataclass(frozen=True, slots=True)
class Personas:
    """All personas of one user by key, at least one.

    `default` is the key of the one that speaks where no other is chosen. `of_characters` has the key of the persona
    that a character remembers, by the character's key.
    """

    by_key: Mapping[str, UserPersona] = field(default_factory=lambda: {FIRST: UserPersona()})
    default: str = FIRST
    of_characters: Mapping[str, str] = field(default_factory=dict)

    def choose(self, chosen: str = "", character: str = "") -> str:
        """The key of who speaks: the `chosen` one, else the one that the character remembers, else the default."""
        found = next((key for key in (chosen, self.of_characters.get(character, "")) if key in self.by_key), "")
        return found or self.default

    def need(self, key: str) -> UserPersona:
        """Raises DeckError where there is none any more."""
        if key not in self.by_key:
            raise DeckError("persona_gone")
        return self.by_key[key]


@dataclass(frozen=True, slots=True)
class RemovedPersona:
    """What delete_persona() took away."""

    key: str
    persona: UserPersona
    picture: bytes | None
    was_default: bool
    characters: tuple[str, ...]


def read_personas(owner: str = "") -> Personas:
    """The stored personas of `owner`, one that is empty where there are none or their file cannot be used: the page
    that edits them says so."""
    return persona_file(owner).read_or_empty()


def require_personas(owner: str = "") -> Personas:
    """As `read_personas`, but raises FileError for a file that cannot be used; it stays as it is."""
    return persona_file(owner).read()


def read_persona(owner: str = "", chosen: str = "", character: str = "") -> UserPersona:
    """Who `owner` is in a chat with a character, see Personas.choose()."""
    personas = read_personas(owner)
    return personas.by_key[personas.choose(chosen, character)]


def save_persona(
    persona: UserPersona, owner: str = "", key: str | None = None, expected: UserPersona | None = None
) -> None:
    """Write a persona in its old one's place; that of the default where `key` is None. Raises DeckError.

    `expected` is what the file is to hold before: where somebody has changed it meanwhile, theirs stays.
    """
    cleaned = _cleaned(persona)
    with persona_file(owner).change() as change:
        personas = change.value
        key = personas.default if key is None else key
        before = personas.need(key)
        if expected is not None and before not in (expected, cleaned):
            raise DeckError("persona_changed")
        change.value = _checked(replace(personas, by_key={**personas.by_key, key: cleaned}))


def add_persona(persona: UserPersona, owner: str = "", picture: bytes | None = None) -> str:
    """Write a further persona and answer its key. Raises DeckError."""
    key, cleaned = secrets.token_hex(4), _cleaned(persona)
    content = None if picture is None else as_png(PICTURE, picture)
    with persona_file(owner).change() as change:
        personas = change.value
        change.value = _checked(replace(personas, by_key={**personas.by_key, key: cleaned}))
        if content is not None:
            save_picture(content, owner, key)
    return key


def delete_persona(key: str, owner: str = "", expected: UserPersona | None = None) -> RemovedPersona:
    """Take a persona away; where it was the last, an empty one is left. Raises DeckError."""
    with persona_file(owner).change() as change:
        personas = change.value
        persona = personas.need(key)
        if expected is not None and persona != expected:
            raise DeckError("persona_changed")
        picture = read_picture(owner, key)
        characters = tuple(name for name, one in personas.of_characters.items() if one == key)
        others = {name: one for name, one in personas.by_key.items() if name != key} or {FIRST: UserPersona()}
        change.value = Personas(
            others,
            personas.default if personas.default in others else next(iter(others)),
            {name: one for name, one in personas.of_characters.items() if one != key},
        )
    save_picture(None, owner, key)
    return RemovedPersona(key, persona, picture, personas.default == key, characters)


def restore_persona(removed: RemovedPersona, owner: str = "") -> None:
    """Bring back what delete_persona() took away; what was chosen meanwhile stays. Raises DeckError."""
    with persona_file(owner).change() as change:
        personas = change.value
        # An empty one was only left because there has to be one.
        kept = {key: one for key, one in personas.by_key.items() if len(personas.by_key) > 1 or not one.is_empty}
        # It has the first one's key, and may have been filled in meanwhile.
        key = removed.key if kept.get(removed.key, removed.persona) == removed.persona else secrets.token_hex(4)
        remembered = dict.fromkeys(removed.characters, key) | dict(personas.of_characters)
        default = key if not kept or (removed.was_default and key == removed.key) else personas.default
        change.value = _checked(Personas(kept | {key: removed.persona}, default, remembered))
        if removed.picture is not None:
            save_picture(removed.picture, owner, key)


def set_default_persona(key: str, owner: str = "") -> None:
    with persona_file(owner).change() as change:
        change.value.need(key)
        change.value = replace(change.value, default=key)


def remember_persona(character: str, key: str, owner: str = "") -> None:
    """Let a character, by its key, remember a persona; an empty `key` forgets it. Raises DeckError."""
    with persona_file(owner).change() as change:
        others = {name: one for name, one in change.value.of_characters.items() if name != character}
        if key:
            change.value.need(key)
            others[character] = key
        change.value = _checked(replace(change.value, of_characters=others))


def add_personas(found: Personas, owner: str = "") -> int:
    """Add what came from another program, without what is there already. How many were new. Raises DeckError.

    Its default becomes the default where there is none but an empty persona, which goes.
    """
    with persona_file(owner).change() as change:
        personas = change.value
        is_first = all(one.is_empty for one in personas.by_key.values()) and not _has_picture(owner, personas)
        by_key = {} if is_first else dict(personas.by_key)
        there = {_cleaned(one): key for key, one in by_key.items()}
        keys: dict[str, str] = {}
        for old, one in found.by_key.items():
            persona = _cleaned(one)
            if persona not in there:
                there[persona] = secrets.token_hex(4)
                by_key[there[persona]] = persona
            keys[old] = there[persona]
        remembered = {name: keys[key] for name, key in found.of_characters.items()} | dict(personas.of_characters)
        num_new = len(by_key) - (0 if is_first else len(personas.by_key))
        default = keys[found.default] if is_first else personas.default
        change.value = _checked(Personas(by_key, default, remembered))
    return num_new


def persona_file(owner: str = "") -> JsonFile[Personas]:
    return persona_file_in(person_dir(owner))


def persona_file_in(folder: Path) -> JsonFile[Personas]:
    """The file has the keys of text-generation-webui's users for the default persona, and further ones beside it."""
    return _file(folder / FILE)


def read_picture(owner: str = "", key: str | None = None) -> bytes | None:
    """The picture of a persona, else of the default one, as PNG; None where there is none. Raises DeckError."""
    path = _picture_path(owner, key)
    try:
        if regular_size(path) > MAX_PNG_BYTES:
            raise CharacterError("card_too_large", file=path.name, limit_mib=MAX_PNG_BYTES // 2**20)
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DeckError("unreadable", file=str(path), why=error.strerror or str(error)) from error


def save_picture(content: bytes | None, owner: str = "", key: str | None = None) -> None:
    """Keep `content`, a picture in any usual format, or with None have none. Raises DeckError."""
    path = _picture_path(owner, key)
    picture = None if content is None else as_png(PICTURE, content)
    try:
        if picture is None:
            path.unlink(missing_ok=True)
        else:
            write_atomically(path, picture, mode=0o600)
    except OSError as error:
        raise DeckError("character_write", file=path.name, why=error.strerror or str(error)) from error


def _picture_path(owner: str, key: str | None) -> Path:
    key = read_personas(owner).default if key is None else key
    return person_dir(owner) / (PICTURE if key == FIRST else f"persona-{key}.png")


def _has_picture(owner: str, personas: Personas) -> bool:
    return any(_picture_path(owner, key).exists() for key in personas.by_key)


def _cleaned(persona: UserPersona) -> UserPersona:
    if len(persona.name) > MAX_NAME_CHARS:
        count = len(persona.name)
        raise CharacterError("character_long_name", name=persona.name[:20], count=count, limit=MAX_NAME_CHARS)
    return UserPersona(read_name(persona.name), printable(persona.description))


def _checked(personas: Personas) -> Personas:
    num_chars = sum(len(one.name) + len(one.description) for one in personas.by_key.values())
    num_chars += sum(map(len, personas.of_characters))
    if num_chars > MAX_ALL_CHARS:
        raise DeckError("personas_too_large", count=f"{num_chars:,}", limit=f"{MAX_ALL_CHARS:,}")
    num_entries = len(personas.by_key) + len(personas.of_characters)
    if num_entries > MAX_ENTRIES:
        raise DeckError("personas_too_many", count=f"{num_entries:,}", limit=f"{MAX_ENTRIES:,}")
    return personas


@lru_cache(256)
def _file(path: Path) -> JsonFile[Personas]:
    sentences = {"unreadable": "unreadable", "unwritable": "character_write"}
    return JsonFile(path, _parse, _dump, Personas(), mode=0o600, codec=YAML, sentences=sentences,
                    fields=("name", "user_bio", "key", "others", "characters"))  # fmt: skip


def _parse(values: dict[str, Any]) -> Personas:
    default, others = values.get("key", FIRST), _object(values, "others")
    keys = [default, *others]
    if not all(isinstance(key, str) and KEY.fullmatch(key) for key in keys) or len(set(keys)) < len(keys):
        raise InvalidContent("a persona's key is none")
    by_key = {default: _parse_one(values)} | {key: _parse_one(_object(others, key)) for key in others}
    remembered = _object(values, "characters").items()
    return Personas(by_key, default, {str(name): key for name, key in remembered if key in keys})


def _parse_one(values: dict[str, Any]) -> UserPersona:
    description = values.get("user_bio")
    return UserPersona(read_name(values.get("name")), description if isinstance(description, str) else "")


def _object(values: dict[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _dump(personas: Personas) -> dict[str, Any]:
    written: dict[str, Any] = _dump_one(personas.by_key[personas.default])
    if personas.default != FIRST:
        written["key"] = personas.default
    others = {key: _dump_one(one) for key, one in personas.by_key.items() if key != personas.default}
    if others:
        written["others"] = others
    if personas.of_characters:
        written["characters"] = dict(personas.of_characters)
    return written


def _dump_one(persona: UserPersona) -> dict[str, Any]:
    return {"name": persona.name, "user_bio": persona.description}


YAML = Codec(lambda text: parse_yaml(FILE, text), write_yaml)
