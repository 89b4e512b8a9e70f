"""Chats with their messages, kept by the process so that they outlive a page or a tab; knows no model and no page."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field
from typing import Literal

from core.engine.answer import Answer

TITLE_CHARS = 48


@dataclass(slots=True)
class Message:
    """One turn. An assistant's message that is still being written reads its text from `answer`."""

    role: Literal["user", "assistant"]
    written: str = ""
    answer: Answer | None = None

    @property
    def text(self) -> str:
        return self.answer.text if self.answer is not None else self.written

    @property
    def is_running(self) -> bool:
        return self.answer is not None and self.answer.is_running


@dataclass(slots=True)
class Conversation:
    """One chat. `messages` alternate between the user and the assistant, oldest first."""

    number: int
    created_s: float
    messages: list[Message] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The beginning of the first message, on one line; empty for a chat in which nothing was said."""
        first = " ".join(self.messages[0].text.split()) if self.messages else ""
        return first if len(first) <= TITLE_CHARS else first[: TITLE_CHARS - 1].rstrip() + "…"

    @property
    def running(self) -> Answer | None:
        """The answer that is being written, if any: always the last message's."""
        return self.messages[-1].answer if self.messages and self.messages[-1].is_running else None

    def ask(self, text: str, answer: Answer) -> None:
        """Add a user's message and the answer to it."""
        self.messages += [Message("user", text), Message("assistant", answer=answer)]


class Conversations:
    """All chats of this process, newest first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._chats: dict[int, Conversation] = {}

    def newest_first(self) -> list[Conversation]:
        with self._lock:
            return sorted(self._chats.values(), key=lambda chat: -chat.number)

    def get(self, number: int) -> Conversation | None:
        return self._chats.get(number)

    def begin(self) -> Conversation:
        """A new chat, for a first message that is about to be asked: empty chats are not kept."""
        with self._lock:
            chat = Conversation(next(self._numbers), time.time())
            self._chats[chat.number] = chat
            return chat

    def delete(self, number: int) -> None:
        """Forget a chat; an answer that is being written for it is cancelled."""
        with self._lock:
            chat = self._chats.pop(number, None)
        if chat is not None and chat.running is not None:
            chat.running.cancel()
