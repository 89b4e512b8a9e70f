"""What the readers of other programs' chats share: what is left behind, and chats as one line or as a tree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from core.chat.parsing import ChatFileError, show_one
from core.chat.records import CopiedChat, CopiedMessage, Role, Thought
from core.chat.titles import propose_title, shortened
from core.common.values import is_whole, printable
from core.documents.document import Document, file_name
from core.documents.limits import MAX_CHARS
from core.engine.thought import ThoughtRules, split_thought

MAX_NAME_CHARS = 200
MAX_MEMBERS = 10
# Of one message.
MAX_FILES = 100
# The page looks up each speaker; the names of further ones stand before their words.
MAX_SPEAKERS = 20
# A thought stands before each version of the answer that follows it: a short file could unroll to gigabytes.
MAX_THOUGHT_CHARS = 100_000_000
# What has no place here; each is a sentence "chat_import_KIND" that says how many there were.
Left = Literal["hidden", "cut_off", "pictures", "files", "tools", "unread", "empty"]


class LeftBehind(Counter[Left]):
    """How much of each kind was left out of a file's chats."""

    def notices(self) -> tuple[ChatFileError, ...]:
        return tuple(ChatFileError(f"chat_import_{kind}", count=count) for kind, count in self.items() if count)


def with_thought(thought: str, text: str) -> str:
    """An answer after the thought that came before it, as models write the two; `apart` takes them apart again."""
    if not thought.strip() or text.lstrip().startswith("<think>"):
        return text
    return f"<think>\n{thought.strip()}\n</think>\n\n{text}"


def apart(message: CopiedMessage) -> CopiedMessage:
    """A message whose text holds a thought, as most programs keep it, with the thought apart."""
    if message.role != "assistant" or message.thought is not None:
        return message
    parts = split_thought(message.text, ThoughtRules())
    if not parts.opening:
        return message
    thought = Thought(parts.thought, parts.opening, parts.closing)
    return replace(message, text=parts.answer, thought=thought if thought.text.strip() else None)


def foreign_file(name: str, text: str = "", size_bytes: object = None) -> Document:
    """A file that was attached to a message; without its text where only its name came along."""
    size = size_bytes if is_whole(size_bytes) and size_bytes >= 0 else len(printable(text).encode())
    return Document(file_name(name), size, printable(text[:MAX_CHARS]), bool(text) and len(text) <= MAX_CHARS)


def finished_chat(
    messages: Sequence[CopiedMessage],
    character: str = "",
    *,
    title: object = "",
    system: str = "",
    created_s: float = 0.0,
) -> CopiedChat:
    """The chat of these messages. More than one speaker on a side keep their names; several characters are a group."""
    voices = list(dict.fromkeys(one.speaker for one in messages if one.role == "assistant" and one.speaker))
    people = {one.speaker for one in messages if one.role == "user"}
    if not character or (voices and character not in voices):
        character = voices[0] if voices else character
    is_plain = {"assistant": len(voices) < 2, "user": len(people) < 2, "text": True}
    asked = next((one.text for one in messages if one.role == "user" and not one.is_hidden), "")
    named = shortened(" ".join(title.split()), MAX_NAME_CHARS) if isinstance(title, str) else ""
    return CopiedChat(
        messages=few_speakers([_said_by(apart(one), "" if is_plain[one.role] else one.speaker) for one in messages]),
        title=named or propose_title(asked),
        title_is_own=bool(named),
        created_s=created_s or min((one.created_s for one in messages if one.created_s), default=0.0),
        mode="chat" if character else "instruct",
        character=character[:MAX_NAME_CHARS],
        members=tuple(voice[:MAX_NAME_CHARS] for voice in voices if voice != character)[: MAX_MEMBERS - 1],
        settings={"system": system.strip()} if system.strip() else {},
    )


def few_speakers(messages: Sequence[CopiedMessage]) -> tuple[CopiedMessage, ...]:
    """The messages with at most MAX_SPEAKERS speakers."""
    named = list(dict.fromkeys(one.speaker for one in messages if one.speaker))
    if len(named) <= MAX_SPEAKERS:
        return tuple(messages)
    further = set(named[MAX_SPEAKERS:])
    return tuple(
        replace(one, text=f"{one.speaker}: {one.text}", speaker="") if one.speaker in further else one
        for one in messages
    )


def _said_by(message: CopiedMessage, speaker: str) -> CopiedMessage:
    return replace(message, speaker=speaker[:MAX_NAME_CHARS])


class Line:
    """Messages one below the other, each perhaps with further versions beside it."""

    def __init__(self) -> None:
        self.messages: list[CopiedMessage] = []
        self._last: int | None = None

    def add(
        self,
        role: Role,
        versions: Sequence[str],
        shown: int = 0,
        created_s: float = 0.0,
        speaker: str = "",
        model: str = "",
        files: Sequence[Document] = (),
        is_hidden: bool = False,
    ) -> None:
        parent = self._last
        for place, text in enumerate(versions):
            if place == shown:
                self._last = len(self.messages)
            self.messages.append(CopiedMessage(parent, role, text, created_s, stats={"model": model} if model else {},
                                               is_shown=place == shown, speaker=speaker,
                                               files=tuple(files[:MAX_FILES]), is_hidden=is_hidden))  # fmt: skip


@dataclass(frozen=True, slots=True)
class ForeignNode:
    """One message of a tree. Without a role it is passed through: what follows it moves up.

    A `thought` goes before the next answer below it.
    """

    parent: str | None
    role: Role | None = None
    text: str = ""
    created_s: float = 0.0
    model: str = ""
    thought: str = ""
    files: tuple[Document, ...] = ()


def messages_of_tree(nodes: Mapping[str, ForeignNode], current: object) -> list[CopiedMessage]:
    """The messages, parents first; those above `current` are shown. Nodes that lead in a circle are left out.

    Raises ChatFileError for thoughts that come to far more than a file has.
    """
    below: dict[str | None, list[str]] = {}
    for name, node in nodes.items():
        below.setdefault(node.parent if node.parent in nodes else None, []).append(name)
    shown = _above(nodes, current)
    messages: list[CopiedMessage] = []
    num_thought_chars = 0
    waiting: list[tuple[str, int | None, str]] = [(name, None, "") for name in reversed(below.get(None, []))]
    while waiting:
        name, place, thought = waiting.pop()
        node = nodes[name]
        thought = "\n\n".join(part for part in (thought, node.thought) if part)
        num_thought_chars += len(thought)
        if num_thought_chars > MAX_THOUGHT_CHARS:
            raise ChatFileError("chat_file_damaged", name="thoughts")
        # A thought that no answer followed stays as one.
        role = node.role or ("assistant" if thought and name not in below else None)
        if role is not None:
            text = with_thought(thought, node.text) if role == "assistant" else node.text
            stats: dict[str, Any] = {"model": node.model} if node.model and role == "assistant" else {}
            messages.append(CopiedMessage(place, role, text, node.created_s, stats=stats, is_shown=name in shown,
                                          files=node.files[:MAX_FILES]))  # fmt: skip
            place, thought = len(messages) - 1, thought if role == "user" else ""
        waiting += [(child, place, thought) for child in reversed(below.get(name, []))]
    return show_one(messages)


def _above(nodes: Mapping[str, ForeignNode], current: object) -> set[str]:
    found: set[str] = set()
    name = current if isinstance(current, str) else None
    while name is not None and name in nodes and name not in found:
        found.add(name)
        name = nodes[name].parent
    return found
