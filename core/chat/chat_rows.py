"""Changes to a chat's own row, each inside its caller's transaction: its title, cast, draft, and the trash."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from core.chat.checks import require_chat
from core.chat.columns import (
    files_to_column,
    names_from_column,
    names_to_column,
    thought_to_column,
    to_column,
)
from core.chat.database import ChatStoreError
from core.chat.queries import draft_files
from core.chat.records import CopiedChat
from core.chat.titles import propose_title
from core.common.values import printable
from core.documents.document import Document


def set_columns(db: sqlite3.Connection, chat: int, columns: str, *values: object) -> None:
    """Set `columns`, such as "mode = ?", of a chat that was not deleted."""
    require_chat(db, chat)
    db.execute(f"UPDATE chats SET {columns} WHERE id = ?", (*values, chat))


def add_draft(db: sqlite3.Connection, chat: int, text: str, files: Sequence[Document]) -> None:
    """Add `text` below the chat's draft, which was typed and not sent, and `files` to those of the draft."""
    all_files = files_to_column((*draft_files(db, chat), *files))
    set_columns(
        db,
        chat,
        "draft_files = ?, draft = CASE draft WHEN '' THEN ? ELSE draft || char(10, 10) || ? END",
        all_files,
        text,
        text,
    )


def drop_draft(db: sqlite3.Connection, chat: int, text: str) -> None:
    """Empty the draft where it is still this `text`: what was added meanwhile stays."""
    require_chat(db, chat)
    db.execute("UPDATE chats SET draft = '', draft_files = '[]' WHERE id = ? AND draft = ?", (chat, text))


def drop_asked(db: sqlite3.Connection, chat: int, text: str) -> None:
    """Empty the draft with the same step in which it is asked, or another tab shows it twice."""
    db.execute(
        "UPDATE chats SET draft = '', draft_files = '[]' WHERE id = ? AND draft <> ''"
        " AND draft || char(10, 10) = substr(? || char(10, 10), 1, length(draft) + 2)",
        (chat, text),
    )


def restore_deleted(db: sqlite3.Connection, chat: int) -> None:
    """Take a chat out of the trash. Raises ChatStoreError where it is gone for good."""
    if not db.execute("UPDATE chats SET deleted_s = NULL WHERE id = ?", (chat,)).rowcount:
        raise ChatStoreError("chat_gone")


def purge(db: sqlite3.Connection, chat: int) -> None:
    """Delete a chat of the trash for good. Raises ChatStoreError where it is not there any more."""
    if not db.execute("DELETE FROM chats WHERE id = ? AND deleted_s IS NOT NULL", (chat,)).rowcount:
        raise ChatStoreError("chat_gone")


def empty_trash(db: sqlite3.Connection, owner: str | None, until_s: float) -> None:
    """Delete for good what came into the owner's trash until then."""
    db.execute("DELETE FROM chats WHERE owner = ? AND deleted_s <= ?", (owner, until_s))


def touch(db: sqlite3.Connection, chat: int, now_s: float) -> None:
    """Bring the chat's time and title up to date after its messages changed."""
    db.execute("UPDATE chats SET changed_s = ? WHERE id = ?", (now_s, chat))
    retitle(db, chat)


def retitle(db: sqlite3.Connection, chat: int) -> None:
    """Propose a title from the person's first shown message, where the chat has no title of their own."""
    if db.execute("SELECT title_is_own FROM chats WHERE id = ?", (chat,)).fetchone()[0]:
        return
    text = _first_words(db, chat)
    db.execute("UPDATE chats SET title = ? WHERE id = ?", (propose_title(text) if text is not None else "", chat))


def _first_words(db: sqlite3.Connection, chat: int) -> str | None:
    """The person's first shown message that the model reads, found step by step.

    The whole tree of a long chat takes much longer to read.
    """
    above, passed = 0, set[int]()
    while above not in passed:
        passed.add(above)
        row = db.execute(
            "SELECT id, role, removed, is_hidden, text FROM messages"
            " WHERE chat = ? AND ifnull(parent, 0) = ? AND is_shown",
            (chat, above),
        ).fetchone()
        if row is None:
            return None
        above, role, removed, is_hidden, text = row
        if role != "assistant" and removed is None and not is_hidden:
            return str(text)
    return None


def purge_older(db: sqlite3.Connection, than_s: float) -> None:
    """Delete for good what came into the trash before then."""
    db.execute("DELETE FROM chats WHERE deleted_s < ?", (than_s,))


def set_cast(db: sqlite3.Connection, chat: int, cast: Sequence[str]) -> None:
    """Let these characters speak, each once; the first is the chat's own. The mode follows, but for a chosen one.

    Where there are or were several, lines without a speaker get the one that they had till now.
    """
    mode, before, members = db.execute("SELECT mode, character, members FROM chats WHERE id = ?", (chat,)).fetchone()
    names = [printable(name) for name in dict.fromkeys(cast) if name]
    character = names[0] if names else ""
    if (names[1:] or names_from_column(members)) and before:
        db.execute(
            "UPDATE messages SET speaker = ? WHERE chat = ? AND role = 'assistant' AND speaker = ''", (before, chat)
        )
    if mode not in ("chat", "notebook"):
        mode = "chat-instruct" if names else "instruct"
    others = names_to_column([name for name in names if name != character])
    db.execute("UPDATE chats SET mode = ?, character = ?, members = ? WHERE id = ?", (mode, character, others, chat))


def insert_chat(db: sqlite3.Connection, chat: CopiedChat, now_s: float, owner: str) -> int:
    """Write a whole chat with its versions as a new one of `owner`."""
    cursor = db.execute(
        "INSERT INTO chats (created_s, changed_s, is_pinned, mode, character, title_is_own, title, settings, draft,"
        " owner, members, lorebooks, draft_files) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (chat.created_s or now_s, now_s, chat.is_pinned, chat.mode, printable(chat.character), chat.title_is_own,
         printable(chat.title), to_column(chat.settings), printable(chat.draft), owner, names_to_column(chat.members),
         names_to_column(chat.lorebooks), files_to_column(chat.draft_files)),
    )  # fmt: skip
    number = int(cursor.lastrowid or 0)
    ids: list[int] = []
    for message in chat.messages:
        row = db.execute(
            "INSERT INTO messages (chat, parent, is_shown, role, state, created_s, stats, text, speaker, files,"
            " thought, is_hidden) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (number, None if message.parent is None else ids[message.parent], message.is_shown, message.role,
             "stopped" if message.state == "writing" else message.state, message.created_s or now_s,
             to_column(message.stats), printable(message.text), printable(message.speaker),
             files_to_column(message.files), thought_to_column(message.thought), message.is_hidden),
        )  # fmt: skip
        ids.append(int(row.lastrowid or 0))
    return number
