"""The user's own persona: a name, a description, a picture; knows no character."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.atomic import write_atomically
from core.errors import DeckError
from core.model_files import regular_size
from core.personas.character import CharacterError
from core.personas.fields import read_name
from core.personas.parse import MAX_TEXT_BYTES, decode_text, parse_yaml, write_yaml
from core.personas.pictures import as_png
from core.settings import data_dir

FILE, PICTURE = "persona.yaml", "persona.png"
MAX_NAME_CHARS = 200


@dataclass(frozen=True, slots=True)
class UserPersona:
    """Who the user is in a chat: both may be empty. The description is part of the system text."""

    name: str = ""
    description: str = ""


def read_persona(folder: Path | None = None) -> UserPersona:
    """The stored persona, an empty one where there is none. The file has the keys of text-generation-webui's users.

    Raises DeckError for a file that cannot be read or understood; it stays as it is.
    """
    path = (folder or data_dir()) / FILE
    try:
        if regular_size(path) > MAX_TEXT_BYTES:
            raise CharacterError("card_too_large", file=FILE, limit_mib=MAX_TEXT_BYTES // 2**20)
        values = parse_yaml(FILE, decode_text(FILE, path.read_bytes()))
    except FileNotFoundError:
        return UserPersona()
    except OSError as error:
        raise DeckError("unreadable", file=str(path), why=error.strerror or str(error)) from error
    description = values.get("user_bio")
    return UserPersona(read_name(values.get("name")), description if isinstance(description, str) else "")


def save_persona(persona: UserPersona, folder: Path | None = None) -> None:
    """Raises DeckError where it cannot be written; then the old one is as it was."""
    if len(persona.name) > MAX_NAME_CHARS:
        count = len(persona.name)
        raise CharacterError("character_long_name", name=persona.name[:20], count=count, limit=MAX_NAME_CHARS)
    values = {"name": read_name(persona.name), "user_bio": persona.description}
    _write((folder or data_dir()) / FILE, write_yaml(values).encode())


def read_picture(folder: Path | None = None) -> bytes | None:
    """The user's picture as PNG, None where there is none."""
    path = (folder or data_dir()) / PICTURE
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DeckError("unreadable", file=str(path), why=error.strerror or str(error)) from error


def save_picture(content: bytes | None, folder: Path | None = None) -> None:
    """Keep `content`, a picture in any usual format, or with None have none. Raises DeckError."""
    path = (folder or data_dir()) / PICTURE
    if content is not None:
        _write(path, as_png(PICTURE, content))
        return
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DeckError("character_write", file=PICTURE, why=error.strerror or str(error)) from error


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise DeckError("character_write", file=path.name, why=error.strerror or str(error)) from error
