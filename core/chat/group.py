"""Chats of several characters: whose line is whose for the one who speaks, and who speaks next."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from core.chat.question import content_of
from core.chat.records import Message
from core.chat.template_messages import Turn

# "named": whoever the last line names, else in turn; "turns": in turn; "manual": whoever a person chooses.
Order = Literal["named", "turns", "manual"]
ORDERS: tuple[Order, ...] = get_args(Order)
# Shorter parts of a name ("Dr", "of") name nobody.
MIN_PART_CHARS = 3
PART = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Group:
    """The speakers of a chat. `keys` has one key for each way in which messages and the chat call a character.

    `names` are the names that the model reads, by key; `cast` are the keys of those who may speak, in their order, the
    chat's first character first. `speaker` speaks now.
    """

    keys: Mapping[str, str]
    names: Mapping[str, str]
    cast: tuple[str, ...]
    speaker: str
    person: str

    @property
    def is_group(self) -> bool:
        return len(self.cast) > 1

    @property
    def others(self) -> tuple[str, ...]:
        """The names of the characters beside the one who speaks, those who left the chat among them."""
        own = self.names.get(self.speaker, "")
        return tuple(dict.fromkeys(name for key, name in self.names.items() if key != self.speaker and name != own))

    def turns(self, messages: Sequence[Message]) -> list[Turn]:
        """What was said, as the speaker's model reads it: own lines are the assistant's, all others have a name."""
        return [self._turn(message) for message in messages]

    def asked(self, content: str) -> Turn:
        """A line of the person's."""
        return Turn(role="user", content=content, name=self.person)

    def speaker_of(self, message: Message) -> str:
        """The key of the character that said a message."""
        return self.keys.get(message.speaker, message.speaker) if message.speaker else self.cast[0] if self.cast else ""

    def _turn(self, message: Message) -> Turn:
        content = content_of(message)
        if message.role == "user":
            return Turn(role="user", content=content, name=message.speaker or self.person)
        key = self.speaker_of(message)
        if key == self.speaker:
            return assistant_turn(message)
        return Turn(role="user", content=content, name=self.names.get(key, message.speaker))


def assistant_turn(message: Message) -> Turn:
    """An answer as the model reads it, with the thought before it where there was one."""
    content = content_of(message)
    if message.is_hidden or message.thought is None or not message.thought.text.strip():
        return Turn(role="assistant", content=content)
    return Turn(role="assistant", content=content, thought=message.thought.text)


def next_speaker(group: Group, messages: Sequence[Message], order: Order = "named", line: str | None = None) -> str:
    """The key of who speaks after `messages`, and after the person's `line` where they have just said one."""
    if not group.cast:
        return ""
    last = next((message for message in reversed(messages) if message.role == "assistant"), None)
    before = group.speaker_of(last) if last is not None else None
    if order == "named":
        text = line if line is not None else messages[-1].text if messages else ""
        # Nobody answers their own line, in which they may well name themselves.
        silent = before if line is None and last is not None and messages[-1] is last else None
        if (named := _named(group, text, silent)) is not None:
            return named
    if before not in group.cast:
        return group.cast[0]
    return group.cast[(group.cast.index(before) + 1) % len(group.cast)]


def _named(group: Group, text: str, silent: str | None) -> str | None:
    """The character that a line names first, by the whole name or by a part of it."""
    said = text.casefold()
    places: list[tuple[int, int, str]] = []
    for key in group.cast:
        name = group.names[key].casefold()
        parts = [name, *(part for part in PART.findall(name) if len(part) >= MIN_PART_CHARS)]
        found = [place for part in parts if part and (place := _place(said, part)) >= 0]
        if found and key != silent:
            places.append((min(found), -len(name), key))
    return min(places)[2] if places else None


def _place(said: str, part: str) -> int:
    """Where a name stands as a word of its own; names of scripts without spaces stand anywhere."""
    if not part.isascii():
        return said.find(part)
    found = re.search(rf"(?<![^\W_]){re.escape(part)}(?![^\W_])", said)
    return found.start() if found else -1
