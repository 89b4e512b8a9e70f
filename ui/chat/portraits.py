"""The small pictures of who speaks in a chat."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from PIL import Image

from core.chat.records import Chat, Message
from core.common.errors import DeckError
from core.personas.thumbnails import make_thumbnail
from core.personas.user import PICTURE, read_personas, read_picture
from ui.chat.setup import character_prompt, find_character, is_foreign, name_of, persona_key
from ui.shared.i18n import text
from ui.shared.people import person
from ui.shared.resources import characters, thumbnails

# For displays with fine dots.
TINY_PX, TINY_QUALITY = 56, 80
FACE_STYLE = (
    """content: ""; flex: none; width: 1.75rem; height: 1.75rem; border-radius: 0.4rem; background-size: cover;"""
)
ICONS = {"user": ":material/person:", "assistant": ":material/smart_toy:", "text": ":material/edit_note:"}
_small = lru_cache(8)(make_thumbnail)


@dataclass(frozen=True, slots=True)
class Faces:
    """The pictures beside messages; None where there is only an icon. `speakers` are a group's, by what names them.

    `names` are those of others than the chat's own two, by what names them; `own_names` are those two's by their role,
    empty where nobody but the plain assistant speaks.
    """

    user: bytes | None = None
    char: bytes | None = None
    speakers: Mapping[str, bytes | None] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    own_names: Mapping[str, str] = field(default_factory=dict)
    person_name: str = ""

    def of(self, role: str) -> bytes | str:
        return (self.user if role == "user" else self.char) or ICONS[role]

    def of_message(self, message: Message) -> bytes | str:
        if not self._is_foreign(message):
            return self.of(message.role)
        return self.speakers.get(message.speaker) or ICONS[message.role]

    def name_of(self, message: Message) -> str:
        """The name to show above a message; empty where it goes without saying."""
        if self._is_foreign(message):
            return self.names.get(message.speaker, message.speaker)
        return self.own_names.get(message.role, "")

    def _is_foreign(self, message: Message) -> bool:
        return is_foreign(message, self.person_name)


def faces_of(chat: Chat) -> Faces:
    """A picture that cannot be read is none: the page of characters says why."""
    info = chat.info
    found, person_name = find_character(info.character), character_prompt(info).person_name
    foreign = [message for message in chat.messages if is_foreign(message, person_name)]
    of_characters = {message.speaker for message in foreign if message.role != "user"}
    if len(info.cast) > 1:
        of_characters |= set(info.cast)
    speakers = {message.speaker: _face_of_user(message.speaker) for message in foreign if message.role == "user"}
    speakers |= {name: character_face(one[0]) if (one := find_character(name)) else None for name in of_characters}
    names = {name: name_of(name) for name in of_characters}
    own = {"user": person_name or text("chat.you"), "assistant": name_of(info.character)} if info.character else {}
    return Faces(persona_face(persona_key(info)), character_face(found[0]) if found else None, speakers, names, own,
                 person_name)  # fmt: skip


def persona_face(key: str) -> bytes | None:
    try:
        picture = read_picture(person(), key)
        return _small(PICTURE, picture) if picture else None
    except DeckError:
        return None


def _face_of_user(name: str) -> bytes | None:
    """The face of the persona that has this name now."""
    found = [key for key, persona in read_personas(person()).by_key.items() if persona.name == name]
    return persona_face(found[0]) if found else None


def tiny_face(name: str) -> str:
    """The picture of a character for a list, as an address that holds it; empty where there is no such character."""
    found = find_character(name)
    face = character_face(found[0]) if found else None
    return _shrunk(face) if face else ""


@lru_cache(512)
def _shrunk(picture: bytes) -> str:
    written = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as opened:
        opened.resize((TINY_PX, TINY_PX)).save(written, "WEBP", quality=TINY_QUALITY)
    return f"data:image/webp;base64,{b64encode(written.getvalue()).decode()}"


def faces_style(faces: Mapping[str, str], chats: Mapping[int, str]) -> str:
    """Draws the face of each chat's character before its button in the list, one rule a character."""
    rules = []
    for name, face in faces.items():
        buttons = ", ".join(f".st-key-chat_open_{chat} button::before" for chat, one in chats.items() if one == name)
        rules.append(f"{buttons} {{ {FACE_STYLE} background-image: url({face}); }}")
    return f"<style>{chr(10).join(rules)}</style>"


def character_face(key: str) -> bytes | None:
    entry = characters().get(key)
    return thumbnails().get(characters(), entry).result() if entry is not None else None
