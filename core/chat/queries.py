"""Chats and messages read from the history's tables; changes nothing."""

from __future__ import annotations

import sqlite3
from typing import Any

from core.chat.checks import read_tree
from core.chat.columns import files_from_column, from_column, names_from_column, thought_from_column
from core.chat.database import ChatStoreError
from core.chat.records import Chat, ChatInfo, DeletedChat, Message
from core.documents.document import Document

INFO_COLUMNS = (
    "id, title, title_is_own, created_s, changed_s, is_pinned, mode, character, settings, draft, members, lorebooks"
)


def list_chats(db: sqlite3.Connection, owner: str, limit: int, offset: int) -> list[ChatInfo]:
    rows = db.execute(
        f"SELECT {INFO_COLUMNS} FROM chats WHERE owner = ? AND deleted_s IS NULL"
        " ORDER BY is_pinned DESC, changed_s DESC, id DESC LIMIT ? OFFSET ?",
        (owner, limit, offset),
    )
    return [_info(row) for row in rows]


def list_recent(db: sqlite3.Connection, owner: str, limit: int) -> list[ChatInfo]:
    rows = db.execute(
        f"SELECT {INFO_COLUMNS} FROM chats WHERE owner = ? AND deleted_s IS NULL"
        " ORDER BY changed_s DESC, id DESC LIMIT ?",
        (owner, limit),
    )
    return [_info(row) for row in rows]


def list_deleted(db: sqlite3.Connection, owner: str, since_s: float, limit: int) -> list[DeletedChat]:
    rows = db.execute(
        f"SELECT {INFO_COLUMNS}, deleted_s FROM chats WHERE owner = ? AND deleted_s >= ?"
        " ORDER BY deleted_s DESC, id DESC LIMIT ?",
        (owner, since_s, limit),
    )
    return [DeletedChat(_info(row[:-1]), row[-1]) for row in rows]


def count_chats(db: sqlite3.Connection, owner: str | None) -> int:
    counted = db.execute("SELECT count(*) FROM chats WHERE owner = ? AND deleted_s IS NULL", (owner,))
    return int(counted.fetchone()[0])


def count_deleted(db: sqlite3.Connection, owner: str | None, since_s: float) -> int:
    counted = db.execute("SELECT count(*) FROM chats WHERE owner = ? AND deleted_s >= ?", (owner, since_s))
    return int(counted.fetchone()[0])


def last_used(db: sqlite3.Connection, owner: str | None) -> dict[str, float]:
    """When a chat of each character changed last, by what the chats call it."""
    rows = db.execute(
        "SELECT character, max(changed_s) FROM chats WHERE owner = ? AND deleted_s IS NULL AND character != ''"
        " GROUP BY character",
        (owner,),
    )
    return dict(rows)


def draft_files(db: sqlite3.Connection, chat: int) -> tuple[Document, ...]:
    row = db.execute("SELECT draft_files FROM chats WHERE id = ?", (chat,)).fetchone()
    return files_from_column(row[0]) if row is not None else ()


def read_info(db: sqlite3.Connection, chat: int) -> ChatInfo:
    row = db.execute(f"SELECT {INFO_COLUMNS} FROM chats WHERE id = ? AND deleted_s IS NULL", (chat,)).fetchone()
    if row is None:
        raise ChatStoreError("chat_gone")
    return _info(row)


def read_chat(db: sqlite3.Connection, chat: int) -> Chat:
    """The chat with the messages that are shown. Raises ChatStoreError where it is gone, as `read_info` does."""
    info, tree = read_info(db, chat), read_tree(db, chat)
    found = db.execute(
        "SELECT id, role, text, created_s, state, stats, speaker, files, thought, is_hidden FROM messages"
        " WHERE chat = ? AND is_shown",
        (chat,),
    )
    rows = {row[0]: row for row in found}
    messages = []
    for node in tree.path():
        if node.id not in rows:
            # A damaged index still names it.
            continue
        id, role, text, created_s, state, stats, speaker, files, thought, is_hidden = rows[node.id]
        versions = tuple(sibling.id for sibling in tree.siblings(id))
        messages.append(Message(id, role, text, created_s, state, from_column(stats), versions, speaker,
                                files_from_column(files), thought_from_column(thought), bool(is_hidden)))  # fmt: skip
    return Chat(info, tuple(messages))


def _info(row: tuple[Any, ...]) -> ChatInfo:
    id, title, title_is_own, created_s, changed_s, is_pinned, mode, character, settings, draft, members, lorebooks = row
    return ChatInfo(id, title, bool(title_is_own), created_s, changed_s, bool(is_pinned), mode, character,
                    from_column(settings), draft, names_from_column(members), names_from_column(lorebooks))  # fmt: skip
