"""What has to be true of a chat or a message before it is read or changed; else ChatStoreError is raised."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from core.chat.database import ChatStoreError
from core.chat.tree import Node, Tree


def read_tree(db: sqlite3.Connection, chat: int) -> Tree:
    rows = db.execute("SELECT id, parent, is_shown, removed FROM messages WHERE chat = ?", (chat,))
    return Tree(map(Node._make, rows))


def require_chat(db: sqlite3.Connection, chat: int) -> None:
    """Raise where there is no such chat, or it was deleted."""
    if db.execute("SELECT 1 FROM chats WHERE id = ? AND deleted_s IS NULL", (chat,)).fetchone() is None:
        raise ChatStoreError("chat_gone")


def require_own_chat(db: sqlite3.Connection, chat: int, owner: str | None) -> None:
    """Raise as for a missing chat where a chat, deleted or not, has another owner. Owner None may see all."""
    if owner is None:
        return
    if db.execute("SELECT 1 FROM chats WHERE id = ? AND owner = ?", (chat, owner)).fetchone() is None:
        raise ChatStoreError("chat_gone")


def require_own_message(db: sqlite3.Connection, message: int, owner: str | None) -> None:
    """The same for the chat of a message."""
    if owner is None:
        return
    found = db.execute(
        "SELECT 1 FROM messages JOIN chats ON chats.id = messages.chat WHERE messages.id = ? AND owner = ?",
        (message, owner),
    ).fetchone()
    if found is None:
        raise ChatStoreError("message_gone")


def find_shown(db: sqlite3.Connection, message: int) -> tuple[int, Tree]:
    """The chat of a message and its tree. Raises where the message is gone, or is not on the path shown."""
    chat = chat_of(db, message)
    tree = read_tree(db, chat)
    if all(node.id != message for node in tree.path()):
        raise ChatStoreError("message_changed")
    return chat, tree


def chat_of(db: sqlite3.Connection, message: int) -> int:
    row = db.execute("SELECT chat FROM messages WHERE id = ?", (message,)).fetchone()
    if row is None:
        raise ChatStoreError("message_gone")
    chat = int(row[0])
    require_chat(db, chat)
    return chat


def require_at_rest(db: sqlite3.Connection, messages: Iterable[int]) -> None:
    """Raise where an answer among `messages` is still being written."""
    for message in messages:
        if db.execute("SELECT state FROM messages WHERE id = ?", (message,)).fetchone()[0] == "writing":
            raise ChatStoreError("chat_is_writing")
