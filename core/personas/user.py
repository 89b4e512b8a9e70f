"""A user's own persona: a name, a description, a picture, for each who signs in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.common.codec import Codec
from core.common.errors import DeckError
from core.common.files import regular_size, write_atomically
from core.common.json_file import JsonFile
from core.common.paths import person_dir
from core.common.values import printable
from core.personas.character import CharacterError
from core.personas.fields import read_name
from core.personas.parse import parse_yaml, write_yaml
from core.personas.pictures import as_png
from core.personas.png import MAX_PNG_BYTES

FILE, PICTURE = "persona.yaml", "persona.png"
MAX_NAME_CHARS = 200


@dataclass(frozen=True, slots=True)
class UserPersona:
    """Who the user is in a chat: both may be empty. The description is part of the system text."""

    name: str = ""
    description: str = ""


def read_persona(owner: str = "") -> UserPersona:
    """The stored persona of `owner`, an empty one where there is none, and where its file cannot be used: the page that
    edits it says so."""
    return persona_file(owner).read_or_empty()


def require_persona(owner: str = "") -> UserPersona:
    """As `read_persona`, but raises FileError for a file that cannot be used; it stays as it is."""
    return persona_file(owner).read()


def save_persona(persona: UserPersona, owner: str = "") -> None:
    """Raises DeckError where it cannot be written; then the old one is as it was."""
    if len(persona.name) > MAX_NAME_CHARS:
        count = len(persona.name)
        raise CharacterError("character_long_name", name=persona.name[:20], count=count, limit=MAX_NAME_CHARS)
    with persona_file(owner).change() as change:
        change.value = UserPersona(read_name(persona.name), printable(persona.description))


def persona_file(owner: str = "") -> JsonFile[UserPersona]:
    return persona_file_in(person_dir(owner))


def persona_file_in(folder: Path) -> JsonFile[UserPersona]:
    """The file has the keys of text-generation-webui's users."""
    return _file(folder / FILE)


def read_picture(owner: str = "") -> bytes | None:
    """The picture of `owner` as PNG, None where there is none."""
    path = person_dir(owner) / PICTURE
    try:
        if regular_size(path) > MAX_PNG_BYTES:
            raise CharacterError("card_too_large", file=PICTURE, limit_mib=MAX_PNG_BYTES // 2**20)
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DeckError("unreadable", file=str(path), why=error.strerror or str(error)) from error


def save_picture(content: bytes | None, owner: str = "") -> None:
    """Keep `content`, a picture in any usual format, or with None have none. Raises DeckError."""
    path = person_dir(owner) / PICTURE
    picture = None if content is None else as_png(PICTURE, content)
    try:
        if picture is None:
            path.unlink(missing_ok=True)
        else:
            write_atomically(path, picture, mode=0o600)
    except OSError as error:
        raise DeckError("character_write", file=PICTURE, why=error.strerror or str(error)) from error


@lru_cache(256)
def _file(path: Path) -> JsonFile[UserPersona]:
    sentences = {"unreadable": "unreadable", "unwritable": "character_write"}
    return JsonFile(path, _parse, _dump, UserPersona(), mode=0o600, fields=("name", "user_bio"), codec=YAML,
                    sentences=sentences)  # fmt: skip


def _parse(values: dict[str, Any]) -> UserPersona:
    description = values.get("user_bio")
    return UserPersona(read_name(values.get("name")), description if isinstance(description, str) else "")


def _dump(persona: UserPersona) -> dict[str, Any]:
    return {"name": persona.name, "user_bio": persona.description}


YAML = Codec(lambda text: parse_yaml(FILE, text), write_yaml)
