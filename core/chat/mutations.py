"""Changes to a chat's messages, each inside its caller's transaction.

Every change names its message, and raises ChatStoreError where that message is not shown any more: a page that has not
noticed what another tab did changes nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from core.chat.chat_rows import drop_asked, retitle, touch
from core.chat.checks import chat_of, find_shown, read_tree, require_at_rest, require_chat
from core.chat.columns import files_to_column, from_column, thought_from_column, thought_to_column, to_column
from core.chat.database import ChatStoreError
from core.chat.records import Role, State, Thought
from core.chat.tree import Node
from core.common.values import printable
from core.documents.document import Document

# Of an answer's stats, what each end says anew.
HOW_IT_ENDED = ("reason", "error")


def append(
    db: sqlite3.Connection,
    chat: int,
    after: int | None,
    role: Role,
    text: str,
    state: State,
    now_s: float,
    speaker: str = "",
    files: Sequence[Document] = (),
    thought: Thought | None = None,
) -> int:
    """Add a message below `after`, the last one that the caller saw. Raises where the chat went on meanwhile."""
    require_chat(db, chat)
    tree = read_tree(db, chat)
    path = tree.path()
    if after != (path[-1].id if path else None):
        raise ChatStoreError("chat_moved_on")
    if after is not None:
        require_at_rest(db, [after])
    if role == "user":
        drop_asked(db, chat, printable(text))
    return insert(db, chat, tree.tail(), role, text, state, now_s, speaker, files_to_column(files), thought)


def insert(
    db: sqlite3.Connection,
    chat: int,
    parent: int | None,
    role: Role,
    text: str,
    state: State,
    now_s: float,
    speaker: str = "",
    files: str = "[]",
    thought: Thought | None = None,
) -> int:
    """Add a message and show it in place of its versions."""
    hide_versions(db, chat, parent)
    cursor = db.execute(
        "INSERT INTO messages (chat, parent, is_shown, role, state, created_s, text, speaker, files, thought)"
        " VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?, ?)",
        (chat, parent, role, state, now_s, printable(text), printable(speaker), files, thought_to_column(thought)),
    )
    touch(db, chat, now_s)
    return int(cursor.lastrowid or 0)


def greet(
    db: sqlite3.Connection, chat: int, after: int | None, texts: Sequence[str], now_s: float, speaker: str
) -> int:
    """Add what a character greets with below `after`: versions of one message, of which the first is shown."""
    first = append(db, chat, after, "assistant", texts[0], "done", now_s, speaker)
    parent = read_tree(db, chat)[first].parent
    for text in texts[1:]:
        insert(db, chat, parent, "assistant", text, "done", now_s, speaker)
    choose(db, first)
    return first


def add_version(db: sqlite3.Connection, message: int, text: str, state: State, now_s: float) -> int:
    """A further version of a message by the same speaker, with the same files, shown in its place.

    What follows the old one stays there.
    """
    chat, tree = find_shown(db, message)
    require_at_rest(db, [node.id for node in tree.path()])
    row = db.execute("SELECT role, speaker, files FROM messages WHERE id = ?", (message,)).fetchone()
    role, speaker, files = row
    return insert(db, chat, tree[message].parent, role, text, state, now_s, speaker, files)


def edit(db: sqlite3.Connection, message: int, text: str, now_s: float) -> int:
    """A further version of a message that takes over what follows; the old text stays as a version.

    What was thought before it stays the same.
    """
    chat, tree = find_shown(db, message)
    require_at_rest(db, [message])
    row = db.execute(
        "SELECT role, state, text, speaker, files, thought FROM messages WHERE id = ?", (message,)
    ).fetchone()
    role, state, old, speaker, files, thought = row
    if old == printable(text):
        return message
    kept: State = "done" if state == "failed" else state
    number = insert(
        db, chat, tree[message].parent, role, text, kept, now_s, speaker, files, thought_from_column(thought)
    )
    db.execute("UPDATE messages SET parent = ? WHERE parent = ?", (number, message))
    db.execute(
        "UPDATE messages SET is_hidden = (SELECT is_hidden FROM messages WHERE id = ?) WHERE id = ?", (message, number)
    )
    retitle(db, chat)
    return number


def hide(db: sqlite3.Connection, message: int, is_hidden: bool) -> None:
    """Keep a message from the model, or let it read it again; people see it all the time."""
    chat, _ = find_shown(db, message)
    require_at_rest(db, [message])
    db.execute("UPDATE messages SET is_hidden = ? WHERE id = ?", (is_hidden, message))
    retitle(db, chat)


def remove_alone(db: sqlite3.Connection, message: int, now_s: float) -> None:
    """Take one message out: its neighbouring version comes in its place, or what follows moves up."""
    chat, tree = find_shown(db, message)
    require_at_rest(db, [message])
    if any(node.removed != "cut" for node in tree.children(message)):
        db.execute("UPDATE messages SET removed = 'alone', removed_by = id WHERE id = ?", (message,))
    else:
        remove(db, [message], message)
        others = [node.id for node in tree.siblings(message) if node.id != message]
        if others:
            nearest = max([other for other in others if other < message] or others[:1])
            db.execute("UPDATE messages SET is_shown = 1 WHERE id = ?", (nearest,))
    touch(db, chat, now_s)


def remove_from(db: sqlite3.Connection, message: int, now_s: float) -> None:
    """End the chat before a message: it goes with all of its versions and what follows them."""
    chat, tree = find_shown(db, message)
    require_at_rest(db, [node.id for node in tree.path()])
    remove(db, [node.id for node in tree.siblings(message)], message)
    touch(db, chat, now_s)


def remove(db: sqlite3.Connection, messages: Iterable[int], removed_by: int) -> None:
    db.executemany(
        "UPDATE messages SET removed = 'cut', removed_by = ?, is_shown = 0 WHERE id = ?",
        [(removed_by, message) for message in messages],
    )


def restore(db: sqlite3.Connection, message: int, now_s: float) -> None:
    """Take back the removal of a message; where the chat went on in its place, that stays as a version."""
    chat = chat_of(db, message)
    undone = db.execute(
        "UPDATE messages SET removed = NULL, removed_by = NULL WHERE removed_by = ?", (message,)
    ).rowcount
    if not undone:
        raise ChatStoreError("message_gone")
    show(db, chat, read_tree(db, chat)[message])
    touch(db, chat, now_s)


def choose(db: sqlite3.Connection, message: int) -> None:
    """Show a message: it and all above it are chosen among their versions."""
    chat = chat_of(db, message)
    above = read_tree(db, chat).ancestors(message)
    if any(node.removed == "cut" for node in above) or above[0].removed:
        raise ChatStoreError("message_gone")
    for node in above:
        if not node.is_shown:
            show(db, chat, node)
    retitle(db, chat)


def show(db: sqlite3.Connection, chat: int, node: Node) -> None:
    hide_versions(db, chat, node.parent)
    db.execute("UPDATE messages SET is_shown = 1 WHERE id = ?", (node.id,))


def hide_versions(db: sqlite3.Connection, chat: int, parent: int | None) -> None:
    db.execute("UPDATE messages SET is_shown = 0 WHERE chat = ? AND parent IS ? AND is_shown", (chat, parent))


def grow(db: sqlite3.Connection, message: int, text: str, thought: Thought | None) -> None:
    """The text that an answer has by now. Raises where nobody waits for it any more."""
    write_answer(db, message, text, "writing", None, thought)


def write_answer(
    db: sqlite3.Connection,
    message: int,
    text: str,
    state: State,
    stats: dict[str, Any] | None,
    thought: Thought | None,
) -> None:
    """Write an answer's text, thought and state; `stats` None leaves those that it has. What went on and added no token
    keeps its figures and its model: they are those of the words. Raises ChatStoreError where it is not being written
    any more."""
    if stats is not None and not stats.get("tokens"):
        row = db.execute("SELECT stats FROM messages WHERE id = ?", (message,)).fetchone()
        before = from_column(row[0]) if row else {}
        stats = stats | {key: value for key, value in before.items() if key not in HOW_IT_ENDED}
    written = db.execute(
        "UPDATE messages SET text = ?, thought = ?, state = ?, stats = coalesce(?, stats)"
        " WHERE id = ? AND state = 'writing'",
        (printable(text), thought_to_column(thought), state, None if stats is None else to_column(stats), message),
    ).rowcount
    if not written:
        raise ChatStoreError("message_gone")


def stop_unfinished(db: sqlite3.Connection) -> None:
    """Mark as stopped every answer that its writer, a killed process, left unfinished."""
    db.execute("UPDATE messages SET state = 'stopped' WHERE state = 'writing'")


def reopen(db: sqlite3.Connection, message: int) -> None:
    """Let the last answer, or a notebook's text, grow on."""
    _, tree = find_shown(db, message)
    if tree.path()[-1].id != message:
        raise ChatStoreError("chat_moved_on")
    require_at_rest(db, [message])
    db.execute("UPDATE messages SET state = 'writing' WHERE id = ?", (message,))
