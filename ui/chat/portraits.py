"""The small pictures of who speaks in a chat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from core.chat.records import Chat, Message
from core.common.errors import DeckError
from core.personas.thumbnails import make_thumbnail
from core.personas.user import PICTURE, read_picture
from ui.chat.setup import find_character, name_of
from ui.shared.people import person
from ui.shared.resources import characters, thumbnails

ICONS = {"user": ":material/person:", "assistant": ":material/smart_toy:", "text": ":material/edit_note:"}
_small = lru_cache(8)(make_thumbnail)


@dataclass(frozen=True, slots=True)
class Faces:
    """The pictures beside messages; None where there is only an icon. `speakers` are a group's, by what names them.

    `names` are the names to show above messages: of all in a group, else of those who are not the chat's own speakers.
    """

    user: bytes | None = None
    char: bytes | None = None
    speakers: Mapping[str, bytes | None] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def of(self, role: str) -> bytes | str:
        return (self.user if role == "user" else self.char) or ICONS[role]

    def of_message(self, message: Message) -> bytes | str:
        if not message.speaker:
            return self.of(message.role)
        return self.speakers.get(message.speaker) or ICONS[message.role]


def faces_of(chat: Chat) -> Faces:
    """A picture that cannot be read is none: the page of characters says why."""
    info = chat.info
    try:
        picture = read_picture(person())
        user = _small(PICTURE, picture) if picture else None
    except DeckError:
        user = None
    found = find_character(info.character)
    spoken = {message.speaker for message in chat.messages if message.speaker}
    if len(info.cast) > 1:
        spoken |= set(info.cast)
    speakers = {name: character_face(one[0]) if (one := find_character(name)) else None for name in spoken}
    names = {name: name_of(name) for name in spoken}
    return Faces(user, character_face(found[0]) if found else None, speakers, names)


def character_face(key: str) -> bytes | None:
    entry = characters().get(key)
    return thumbnails().get(characters(), entry).result() if entry is not None else None
