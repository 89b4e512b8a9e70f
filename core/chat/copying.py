"""A chat of the history as a copy that stands alone, with or without its versions; changes nothing."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

from core.chat.checks import read_tree
from core.chat.columns import files_from_column, from_column, thought_from_column
from core.chat.queries import draft_files, read_info
from core.chat.records import Chat, ChatInfo, CopiedChat, CopiedMessage
from core.chat.tree import Tree

# A message that a damaged file names and does not hold; those around it are copied.
LOST = (0, "assistant", "", 0.0, "stopped", "{}", "", "[]", "", 0)


def copy_of(db: sqlite3.Connection, chat: int) -> CopiedChat:
    """The chat with all versions. What was deleted stays out: an export may be for somebody else."""
    info, tree = read_info(db, chat), read_tree(db, chat)
    columns = "id, role, text, created_s, state, stats, speaker, files, thought, is_hidden"
    rows = {row[0]: row for row in db.execute(f"SELECT {columns} FROM messages WHERE chat = ?", (chat,))}
    messages: list[CopiedMessage] = []
    for number, parent, is_shown in _living(tree):
        _, role, text, created_s, state, stats, speaker, files, thought, is_hidden = rows.get(number, LOST)
        messages.append(CopiedMessage(parent, role, text, created_s, state, from_column(stats), is_shown, speaker,
                                      files_from_column(files), thought_from_column(thought),
                                      bool(is_hidden)))  # fmt: skip
    return replace(_with_messages(info, messages), draft_files=draft_files(db, chat))


def path_of(chat: Chat, last: int) -> CopiedChat:
    """What is shown up to and with the message `last`."""
    messages: list[CopiedMessage] = []
    for index, message in enumerate(chat.messages):
        messages.append(CopiedMessage(index - 1 if index else None, message.role, message.text, message.created_s,
                                      message.state, message.stats, speaker=message.speaker,
                                      files=message.files, thought=message.thought,
                                      is_hidden=message.is_hidden))  # fmt: skip
        if message.id == last:
            break
    return _with_messages(chat.info, messages, is_new=True)


def _living(tree: Tree) -> list[tuple[int, int | None, bool]]:
    """Each node that was not deleted: its id, its parent's place in this list, whether it is the version shown.

    Parents come first. What follows a message that was removed alone moves up to the parent of that.
    """
    found: list[tuple[int, int | None, bool]] = []
    waiting: list[tuple[int | None, int | None, bool]] = [(None, None, True)]
    while waiting:
        above, place, is_open = waiting.pop()
        for node in tree.children(above):
            if node.removed == "cut":
                continue
            is_shown = bool(is_open and node.is_shown)
            if node.removed == "alone":
                waiting.append((node.id, place, is_shown))
            else:
                found.append((node.id, place, is_shown))
                waiting.append((node.id, len(found) - 1, True))
    return found


def _with_messages(info: ChatInfo, messages: list[CopiedMessage], is_new: bool = False) -> CopiedChat:
    return CopiedChat(
        tuple(messages), info.title, info.title_is_own, 0.0 if is_new else info.created_s, info.mode, info.character,
        info.settings, "" if is_new else info.draft, not is_new and info.is_pinned, info.members,
        info.lorebooks,
    )  # fmt: skip
