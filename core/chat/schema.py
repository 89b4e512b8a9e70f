"""The tables of the chat history and how an older file gets them.

A migration is never changed once it was released: a further one is added. Its number is SQLite's user_version.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

# "LDck": tells our file from other programs'.
APPLICATION_ID = 0x4C44636B

# Messages form a tree: the children of one parent are versions of each other, at most one of which is shown.
# Long columns come last: SQLite reads those before them without the pages that a long text spills into.
FIRST = (
    """
    CREATE TABLE chats (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        created_s REAL NOT NULL,
        changed_s REAL NOT NULL,
        is_pinned INTEGER NOT NULL DEFAULT 0,
        deleted_s REAL,
        mode TEXT NOT NULL,
        character TEXT NOT NULL,
        title_is_own INTEGER NOT NULL DEFAULT 0,
        title TEXT NOT NULL DEFAULT '',
        settings TEXT NOT NULL DEFAULT '{}',
        draft TEXT NOT NULL DEFAULT ''
    )
    """,
    """
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        chat INTEGER NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
        parent INTEGER REFERENCES messages (id),
        is_shown INTEGER NOT NULL,
        removed TEXT CHECK (removed IN ('alone', 'cut')),
        removed_by INTEGER,
        role TEXT NOT NULL CHECK (role IN ('user', 'assistant', 'text')),
        state TEXT NOT NULL CHECK (state IN ('writing', 'done', 'stopped', 'failed')),
        created_s REAL NOT NULL,
        stats TEXT NOT NULL DEFAULT '{}',
        text TEXT NOT NULL
    )
    """,
    "CREATE INDEX messages_by_chat ON messages (chat)",
    "CREATE INDEX messages_by_parent ON messages (parent)",
    "CREATE INDEX messages_removed ON messages (removed_by) WHERE removed_by IS NOT NULL",
    "CREATE INDEX messages_in_writing ON messages (state) WHERE state = 'writing'",
    "CREATE UNIQUE INDEX one_version_shown ON messages (chat, ifnull(parent, 0)) WHERE is_shown",
)
# Whose a chat is: of the people who signed in through a provider each sees only their own. "" is whoever uses this
# machine itself or gave its password, and had all chats before.
OWNERS = ("ALTER TABLE chats ADD COLUMN owner TEXT NOT NULL DEFAULT ''",)
# Groups: the further characters of a chat as a JSON list, and who said a message ("": the chat's one character or its
# person).
GROUPS = (
    "ALTER TABLE chats ADD COLUMN members TEXT NOT NULL DEFAULT '[]'",
    "ALTER TABLE messages ADD COLUMN speaker TEXT NOT NULL DEFAULT ''",
)
# Every step on the chat page reads the head of the list and counts the trash: neither goes through all chats for it.
LISTS = (
    """
    CREATE INDEX chats_in_list ON chats (owner, is_pinned DESC, changed_s DESC, id DESC) WHERE deleted_s IS NULL
    """,
    "CREATE INDEX chats_in_trash ON chats (owner, deleted_s) WHERE deleted_s IS NOT NULL",
)
# The files of a question, with their texts, as a JSON list; and those of a chat's draft.
FILES = (
    "ALTER TABLE messages ADD COLUMN files TEXT NOT NULL DEFAULT '[]'",
    "ALTER TABLE chats ADD COLUMN draft_files TEXT NOT NULL DEFAULT '[]'",
)
# The lorebooks of a chat as a JSON list of their keys or names.
LOREBOOKS = ("ALTER TABLE chats ADD COLUMN lorebooks TEXT NOT NULL DEFAULT '[]'",)
# What a model thought before an answer, as JSON (see Thought); before, the answers held it between its marks.
BLANKS = "char(9, 10, 13, 32)"
THOUGHTS = (
    "ALTER TABLE messages ADD COLUMN thought TEXT NOT NULL DEFAULT ''",
    f"""
    UPDATE messages SET
        thought = json_object(
            'text', trim(substr(text, instr(text, '<think>') + 7, CASE instr(text, '</think>')
                WHEN 0 THEN length(text) ELSE instr(text, '</think>') - instr(text, '<think>') - 7 END), {BLANKS}),
            'opening', '<think>' || char(10),
            'closing', CASE instr(text, '</think>') WHEN 0 THEN '' ELSE char(10) || '</think>' || char(10, 10) END),
        text = CASE instr(text, '</think>') WHEN 0 THEN ''
            ELSE ltrim(substr(text, instr(text, '</think>') + 8), {BLANKS}) END
    WHERE role = 'assistant' AND substr(ltrim(text, {BLANKS}), 1, 7) = '<think>'
    """,
)
# Messages that people read and the model does not.
HIDDEN = ("ALTER TABLE messages ADD COLUMN is_hidden INTEGER NOT NULL DEFAULT 0",)
MIGRATIONS: tuple[Sequence[str], ...] = (FIRST, OWNERS, GROUPS, LISTS, FILES, LOREBOOKS, THOUGHTS, HIDDEN)


def version_of(db: sqlite3.Connection) -> int:
    """The number of migrations that the file has had; 0 for a new one."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def is_foreign(db: sqlite3.Connection) -> bool:
    """Whether the file holds another program's tables."""
    application = db.execute("PRAGMA application_id").fetchone()[0]
    num_tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return bool(num_tables) and application != APPLICATION_ID


def migrate(db: sqlite3.Connection, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> None:
    """Bring the tables to the newest version, inside the caller's transaction: all of it, or nothing."""
    for statements in migrations[version_of(db) :]:
        for statement in statements:
            db.execute(statement)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {len(migrations)}")
