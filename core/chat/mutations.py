"""Changes to a chat's messages, each inside its caller's transaction.

Every change names its message, and raises ChatStoreError where that message is not shown any more: a page that has not
noticed what another tab did changes nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from core.chat.columns import (
    files_to_column,
    names_from_column,
    names_to_column,
    thought_from_column,
    thought_to_column,
    to_column,
)
from core.chat.database import ChatStoreError
from core.chat.records import CopiedChat, Role, State, Thought
from core.chat.titles import propose_title
from core.chat.tree import Node, Tree
from core.common.values import printable
from core.documents.document import Document


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
        _drop_asked(db, chat, printable(text))
    return insert(db, chat, tree.tail(), role, text, state, now_s, speaker, files_to_column(files), thought)


def _drop_asked(db: sqlite3.Connection, chat: int, text: str) -> None:
    """Empty the draft with the same step in which it is asked, or another tab shows it twice."""
    db.execute(
        "UPDATE chats SET draft = '', draft_files = '[]' WHERE id = ? AND draft <> ''"
        " AND draft || char(10, 10) = substr(? || char(10, 10), 1, length(draft) + 2)",
        (chat, text),
    )


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
    written = db.execute(
        "UPDATE messages SET text = ?, thought = ?, state = ?, stats = coalesce(?, stats)"
        " WHERE id = ? AND state = 'writing'",
        (printable(text), thought_to_column(thought), state, None if stats is None else to_column(stats), message),
    ).rowcount
    if not written:
        raise ChatStoreError("message_gone")


def reopen(db: sqlite3.Connection, message: int) -> None:
    """Let the last answer, or a notebook's text, grow on."""
    _, tree = find_shown(db, message)
    if tree.path()[-1].id != message:
        raise ChatStoreError("chat_moved_on")
    require_at_rest(db, [message])
    db.execute("UPDATE messages SET state = 'writing' WHERE id = ?", (message,))


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
