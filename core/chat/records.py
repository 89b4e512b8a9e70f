"""What the chat history holds, as plain values: a chat, its messages and their versions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from core.documents.document import Document

Mode = Literal["instruct", "chat", "chat-instruct", "notebook"]
# "text" is a notebook's one text.
Role = Literal["user", "assistant", "text"]
State = Literal["writing", "done", "stopped", "failed"]
MODES: tuple[str, ...] = get_args(Mode)
ROLES: tuple[str, ...] = get_args(Role)
STATES: tuple[str, ...] = get_args(State)


@dataclass(frozen=True, slots=True)
class ChatInfo:
    """One chat without its messages. `character` is a name or empty; times are seconds since 1970.

    `members` are the further characters of a group. A character is named by its key, or as its file names it.
    `settings` are plain values by name, such as "preset". Only "sampling" is a group: settings of Sampling.
    `lorebooks` are those of this chat alone, named by their keys, or as other programs name them.
    """

    id: int
    title: str
    title_is_own: bool
    created_s: float
    changed_s: float
    is_pinned: bool
    mode: Mode
    character: str
    settings: dict[str, Any]
    draft: str
    members: tuple[str, ...] = ()
    lorebooks: tuple[str, ...] = ()

    @property
    def cast(self) -> tuple[str, ...]:
        """All characters of the chat, in the order in which they speak."""
        return tuple(dict.fromkeys(name for name in (self.character, *self.members) if name))


@dataclass(frozen=True, slots=True)
class Thought:
    """What a model thought before an answer, and for how long where that is known.

    `opening` and `closing` are what the model read and wrote around it, marks and blanks. A thought without `closing`
    was not finished.
    """

    text: str
    opening: str = ""
    closing: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One message on the path that is shown. `versions` are the ids of all its versions, its own among them.

    `stats` of an answer: model, reason, tokens, tokens_per_s, first_token_s, prompt_tokens,
    reused_tokens, seed;
    error where it failed. `speaker` is who said it, where that is not the chat's character; of a person's message it
    is the name that they had then. `files` were added to a question: the model reads them before its words. What
    `is_hidden` the model does not read.
    """

    id: int
    role: Role
    text: str
    created_s: float
    state: State
    stats: dict[str, Any]
    versions: tuple[int, ...]
    speaker: str = ""
    files: tuple[Document, ...] = ()
    thought: Thought | None = None
    is_hidden: bool = False

    @property
    def whole(self) -> str:
        """The message as the model wrote it, with its thought."""
        thought = self.thought
        return self.text if thought is None else thought.opening + thought.text + thought.closing + self.text


@dataclass(frozen=True, slots=True)
class Chat:
    """One chat with the messages of the path that is shown, oldest first."""

    info: ChatInfo
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class DeletedChat:
    """A chat in the trash, and when it came there in seconds since 1970."""

    info: ChatInfo
    deleted_s: float


@dataclass(frozen=True, slots=True)
class Hit:
    """One message, or a title (`message` None), that has all words of a search.

    `snippet` is text around the first word, which is `snippet[begin:end]`.
    """

    chat: int
    title: str
    message: int | None
    role: Role | None
    created_s: float
    snippet: str
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class CopiedMessage:
    """A message outside of the history. `parent` is the index of an earlier one in the same list, or None."""

    parent: int | None
    role: Role
    text: str
    created_s: float
    state: State = "done"
    stats: dict[str, Any] = field(default_factory=dict)
    is_shown: bool = True
    speaker: str = ""
    files: tuple[Document, ...] = ()
    thought: Thought | None = None
    is_hidden: bool = False


@dataclass(frozen=True, slots=True)
class CopiedChat:
    """A whole chat outside of the history, with all versions: to export, to import, to branch."""

    messages: tuple[CopiedMessage, ...]
    title: str = ""
    title_is_own: bool = False
    created_s: float = 0.0
    mode: Mode = "instruct"
    character: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    draft: str = ""
    is_pinned: bool = False
    members: tuple[str, ...] = ()
    lorebooks: tuple[str, ...] = ()
    draft_files: tuple[Document, ...] = ()
