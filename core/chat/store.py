"""The chat history: every chat and message, in one SQLite file under data/.

Each change is one transaction, which names rows by id and is on the disk when it returns. No change writes a whole
chat back, so a second tab or an old page cannot overwrite one. Every method may be called from any thread.

A store shows the chats of one owner, as if there were no others.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from core.chat import chat_rows, checks, mutations, queries
from core.chat.columns import names_to_column, to_column
from core.chat.copying import copy_of, path_of
from core.chat.database import BUSY_S, Database, changed_meanwhile
from core.chat.records import Chat, ChatInfo, CopiedChat, CopiedMessage, DeletedChat, Hit, Mode, State, Thought
from core.chat.searching import find_messages
from core.chat.titles import shortened
from core.common.paths import data_dir
from core.common.values import printable
from core.documents.document import Document

# How long a deleted chat waits in the trash.
KEEP_DELETED_DAYS = 30
KEEP_DELETED_S = KEEP_DELETED_DAYS * 24 * 3600.0
MAX_OWN_TITLE_CHARS = 200
PAGE_CHATS = 50
PAGE_HITS = 50
T = TypeVar("T")


class ChatStore:
    """The chats of the owner "". Raises ChatStoreError, in the constructor too, with nothing changed."""

    def __init__(self, path: Path | None = None, busy_s: float = BUSY_S, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._owner: str | None = ""
        self._database = Database(path or data_dir() / "chats.sqlite3", busy_s)
        try:
            self._settle()
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        self._database.close()

    def of(self, owner: str) -> ChatStore:
        """The chats of another owner, in the same file."""
        return self._with_owner(owner)

    def of_all(self) -> ChatStore:
        """For the recorder, which goes on with everybody's answers. It reads and writes every chat, but lists none."""
        return self._with_owner(None)

    def _with_owner(self, owner: str | None) -> ChatStore:
        store = copy(self)
        store._owner = owner
        return store

    def _settle(self) -> None:
        """Put in order what a killed process left, where no other process uses the file."""
        if self._database.is_alone:
            with self._database.change() as db:
                mutations.stop_unfinished(db)
                chat_rows.purge_older(db, self._kept_since_s())
            self._database.settle()

    # Chats ----------------------------------------------------------------------------------------------------------

    def create(
        self,
        mode: Mode,
        character: str = "",
        settings: dict[str, Any] | None = None,
        greetings: Sequence[str] = (),
        shown: int = 0,
    ) -> int:
        """A new chat. Several `greetings` are versions of its first message, of which the one at `shown` is shown."""
        messages = [
            CopiedMessage(None, "assistant", text, 0.0, is_shown=index == shown) for index, text in enumerate(greetings)
        ]
        return self.add(CopiedChat(tuple(messages), mode=mode, character=character, settings=settings or {}))

    def add(self, chat: CopiedChat) -> int:
        """Write a chat that comes from outside as a new one."""
        with self._database.change() as db:
            return chat_rows.insert_chat(db, chat, self._now(), self._owner or "")

    def add_all(self, chats: Sequence[CopiedChat]) -> list[int]:
        """Write the chats of a file: all of them, or none where one cannot be written. Ids in the same order."""
        with self._database.change() as db:
            return [chat_rows.insert_chat(db, chat, self._now(), self._owner or "") for chat in chats]

    def chats(self, limit: int = PAGE_CHATS, offset: int = 0) -> list[ChatInfo]:
        """Pinned chats first, then those that changed last."""
        with self._database.read() as db:
            return queries.list_chats(db, self._owner or "", limit, offset)

    def recent(self, limit: int) -> list[ChatInfo]:
        """Those that changed last, pinned or not."""
        with self._database.read() as db:
            return queries.list_recent(db, self._owner or "", limit)

    def last_used(self) -> dict[str, float]:
        """When a chat of each character changed last, by what the chats call it."""
        with self._database.read() as db:
            return queries.last_used(db, self._owner)

    def count(self) -> int:
        with self._database.read() as db:
            return queries.count_chats(db, self._owner)

    def info(self, chat: int) -> ChatInfo:
        with self._reading(chat) as db:
            return queries.read_info(db, chat)

    def read(self, chat: int) -> Chat:
        """A chat with the messages that are shown."""
        with self._reading(chat) as db:
            return queries.read_chat(db, chat)

    def copy(self, chat: int) -> CopiedChat:
        """A chat with all versions, to export; what was deleted from it is not in it."""
        with self._reading(chat) as db:
            return copy_of(db, chat)

    def branch(self, message: int, title: str = "") -> int:
        """A new chat that is a copy of the old one up to and with a message, with a `title` that tells it apart."""
        with self._changing(message) as db:
            chat, _ = checks.find_shown(db, message)
            copied = path_of(queries.read_chat(db, chat), message)
            if title:
                own = shortened(printable(title), MAX_OWN_TITLE_CHARS)
                copied = replace(copied, title=own, title_is_own=True)
            return chat_rows.insert_chat(db, copied, self._now(), self._owner or "")

    def rename(self, chat: int, title: str, expected: str | None = None) -> None:
        """Give a chat a title of its own; an empty one brings back the proposed one.

        `expected` is the title that the caller saw. Raises ChatStoreError "chat_changed" where another one holds now.
        """
        title = shortened(" ".join(printable(title).split()), MAX_OWN_TITLE_CHARS)
        with self._changing_chat(chat) as db:
            if queries.read_info(db, chat).title not in (expected, title) and expected is not None:
                raise changed_meanwhile(title)
            chat_rows.set_columns(db, chat, "title = ?, title_is_own = ?", title, bool(title))
            chat_rows.retitle(db, chat)

    def pin(self, chat: int, is_pinned: bool) -> None:
        self._set(chat, "is_pinned = ?", is_pinned)

    def change_settings(self, chat: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Make new settings of the present ones, so that what another tab sets at the same time stays."""
        with self._changing_chat(chat) as db:
            settings = change(queries.read_info(db, chat).settings)
            chat_rows.set_columns(db, chat, "settings = ?", to_column(settings))

    def set_mode(self, chat: int, mode: Mode) -> None:
        """Put a chat to the model in another mode, with the same speaker."""
        self._set(chat, "mode = ?", mode)

    def set_character(self, chat: int, character: str) -> None:
        """Let another character speak.

        A person's own choice of plain lines or of a notebook stays; else the mode follows the character.
        """
        with self._changing_chat(chat) as db:
            chat_rows.set_cast(db, chat, (character, *queries.read_info(db, chat).members))

    def set_members(self, chat: int, members: Sequence[str], expected: Sequence[str] | None = None) -> None:
        """Give a chat these characters beside its first one. What each has said stays theirs.

        `expected` are the members that the caller saw. Raises ChatStoreError "chat_changed" where others hold now.
        """
        with self._changing_chat(chat) as db:
            info = queries.read_info(db, chat)
            if expected is not None and info.members not in (tuple(expected), tuple(members)):
                raise changed_meanwhile(", ".join(members))
            chat_rows.set_cast(db, chat, (info.character, *members))

    def set_lorebooks(self, chat: int, lorebooks: Sequence[str], expected: Sequence[str]) -> None:
        """Give a chat these lorebooks of its own.

        `expected` are those that the caller saw. Raises ChatStoreError "chat_changed" where others hold now.
        """
        with self._changing_chat(chat) as db:
            if queries.read_info(db, chat).lorebooks not in (tuple(expected), tuple(lorebooks)):
                raise changed_meanwhile(", ".join(lorebooks))
            chat_rows.set_columns(db, chat, "lorebooks = ?", names_to_column(lorebooks))

    def add_draft(self, chat: int, text: str, files: Sequence[Document] = ()) -> None:
        """Add `text` below the chat's draft, which was typed and not sent, and `files` to those of the draft."""
        with self._changing_chat(chat) as db:
            chat_rows.add_draft(db, chat, printable(text), files)

    def draft_files(self, chat: int) -> tuple[Document, ...]:
        with self._reading(chat) as db:
            return queries.draft_files(db, chat)

    def drop_draft(self, chat: int, text: str) -> None:
        """Empty the draft where it is still this `text`: what was added meanwhile stays."""
        with self._changing_chat(chat) as db:
            chat_rows.drop_draft(db, chat, printable(text))

    def _set(self, chat: int, columns: str, *values: object) -> None:
        with self._changing_chat(chat) as db:
            chat_rows.set_columns(db, chat, columns, *values)

    def search(self, text: str, limit: int = PAGE_HITS) -> list[Hit]:
        """Messages and titles that hold every word of `text`, newest first, in any language and letter case."""
        with self._database.read() as db:
            return find_messages(db, self._owner or "", text, limit)

    # The trash ------------------------------------------------------------------------------------------------------

    def delete_chat(self, chat: int) -> None:
        """Put a chat into the trash, where it waits for KEEP_DELETED_S. Those that waited longer go for good."""
        with self._changing_chat(chat) as db:
            chat_rows.set_columns(db, chat, "deleted_s = ?", self._now())
            chat_rows.purge_older(db, self._kept_since_s())

    def restore_chat(self, chat: int) -> None:
        """Take a chat out of the trash, with everything that it had."""
        with self._changing_chat(chat) as db:
            chat_rows.restore_deleted(db, chat)

    def purge_chat(self, chat: int) -> None:
        """Delete a chat of the trash for good. Raises ChatStoreError where it is not there any more."""
        with self._changing_chat(chat) as db:
            chat_rows.purge(db, chat)

    def empty_trash(self, until_s: float) -> None:
        """Delete for good what came into the trash until then: what another tab puts there meanwhile stays."""
        with self._database.change() as db:
            chat_rows.empty_trash(db, self._owner, until_s)

    def deleted(self, limit: int = PAGE_CHATS) -> list[DeletedChat]:
        """The chats in the trash, those deleted last first."""
        with self._database.read() as db:
            return queries.list_deleted(db, self._owner or "", self._kept_since_s(), limit)

    def count_deleted(self) -> int:
        with self._database.read() as db:
            return queries.count_deleted(db, self._owner, self._kept_since_s())

    def _kept_since_s(self) -> float:
        return self._now() - KEEP_DELETED_S

    # Messages -------------------------------------------------------------------------------------------------------

    def append_user(
        self, chat: int, text: str, after: int | None, files: Sequence[Document] = (), speaker: str = ""
    ) -> int:
        """Add a person's message with its files. `after` is the last message that they saw, None in an empty chat.

        `speaker` is the name under which they write.
        Raises ChatStoreError "chat_moved_on" where the chat went on meanwhile.
        """
        return self._change_chat(
            chat,
            lambda db: mutations.append(db, chat, after, "user", text, "done", self._now(), speaker, files),
        )

    def append_text(self, chat: int, text: str) -> int:
        """The text that a new notebook begins with."""
        return self._change_chat(chat, lambda db: mutations.append(db, chat, None, "text", text, "done", self._now()))

    def greet(self, chat: int, after: int | None, texts: Sequence[str], speaker: str) -> int:
        """Let a character of a group greet: the `texts` are versions of one message, of which the first is shown."""
        return self._change_chat(chat, lambda db: mutations.greet(db, chat, after, texts, self._now(), speaker))

    def begin_answer(
        self, chat: int, after: int | None, text: str = "", speaker: str = "", thought: Thought | None = None
    ) -> int:
        """Begin the answer to `after`; `thought` and `text` it begins with, `speaker` is the character of a group."""
        return self._change_chat(
            chat,
            lambda db: mutations.append(
                db, chat, after, "assistant", text, "writing", self._now(), speaker, thought=thought
            ),
        )

    def begin_version(self, message: int, text: str = "") -> int:
        """Begin an answer anew; the old one stays as a version, with what followed it."""
        return self._change(message, lambda db: mutations.add_version(db, message, text, "writing", self._now()))

    def add_version(self, message: int, text: str) -> int:
        """Put another text in a message's place, with the same files.

        The old one stays as a version, with what followed it.
        """
        return self._change(message, lambda db: mutations.add_version(db, message, text, "done", self._now()))

    def reopen_answer(self, message: int) -> None:
        """Let the last answer, or a notebook's text, grow on."""
        self._change(message, lambda db: mutations.reopen(db, message))

    def grow_answer(self, message: int, text: str, thought: Thought | None = None) -> None:
        """Write the text that an answer has by now, and what was thought before it."""
        self._change(message, lambda db: mutations.grow(db, message, text, thought))

    def finish_answer(
        self, message: int, text: str, state: State, stats: dict[str, Any], thought: Thought | None = None
    ) -> None:
        self._change(message, lambda db: mutations.write_answer(db, message, text, state, stats, thought))

    def edit(self, message: int, text: str) -> int:
        """Change a message's words; what follows stays, and the old words are a version. The new version's id."""
        return self._change(message, lambda db: mutations.edit(db, message, text, self._now()))

    def hide(self, message: int, is_hidden: bool) -> None:
        """Keep a message from the model, or let it read it again."""
        self._change(message, lambda db: mutations.hide(db, message, is_hidden))

    def delete(self, message: int) -> None:
        """Take out one message, the version that is shown."""
        self._change(message, lambda db: mutations.remove_alone(db, message, self._now()))

    def delete_from(self, message: int) -> None:
        """Take out a message with all of its versions and what follows."""
        self._change(message, lambda db: mutations.remove_from(db, message, self._now()))

    def restore(self, message: int) -> None:
        """Take back the `delete` or `delete_from` of that message."""
        self._change(message, lambda db: mutations.restore(db, message, self._now()))

    def show(self, message: int) -> None:
        """Show a version, or what a search found: it and all above it are chosen."""
        self._change(message, lambda db: mutations.choose(db, message))

    # Whose it is ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _reading(self, chat: int) -> Iterator[sqlite3.Connection]:
        with self._database.read() as db:
            checks.require_own_chat(db, chat, self._owner)
            yield db

    @contextmanager
    def _changing_chat(self, chat: int) -> Iterator[sqlite3.Connection]:
        with self._database.change() as db:
            checks.require_own_chat(db, chat, self._owner)
            yield db

    @contextmanager
    def _changing(self, message: int) -> Iterator[sqlite3.Connection]:
        with self._database.change() as db:
            checks.require_own_message(db, message, self._owner)
            yield db

    def _change_chat(self, chat: int, change: Callable[[sqlite3.Connection], T]) -> T:
        with self._changing_chat(chat) as db:
            return change(db)

    def _change(self, message: int, change: Callable[[sqlite3.Connection], T]) -> T:
        with self._changing(message) as db:
            return change(db)
