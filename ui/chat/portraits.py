"""The small pictures of who speaks in a chat."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from core.chat.records import ChatInfo
from core.common.errors import DeckError
from core.personas.thumbnails import make_thumbnail
from core.personas.user import PICTURE, read_picture
from ui.chat.setup import find_character
from ui.shared.people import person
from ui.shared.resources import characters, thumbnails

ICONS = {"user": ":material/person:", "assistant": ":material/smart_toy:", "text": ":material/edit_note:"}
_small = lru_cache(8)(make_thumbnail)


@dataclass(frozen=True, slots=True)
class Faces:
    """The pictures beside messages; None where there is only an icon."""

    user: bytes | None = None
    char: bytes | None = None

    def of(self, role: str) -> bytes | str:
        return (self.user if role == "user" else self.char) or ICONS[role]


def faces_of(info: ChatInfo) -> Faces:
    """A picture that cannot be read is none: the page of characters says why."""
    try:
        picture = read_picture(person())
        user = _small(PICTURE, picture) if picture else None
    except DeckError:
        user = None
    found = find_character(info.character)
    return Faces(user, character_face(found[0]) if found else None)


def character_face(key: str) -> bytes | None:
    entry = characters().get(key)
    return thumbnails().get(characters(), entry).result() if entry is not None else None
