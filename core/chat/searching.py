"""Search over all chats: every word somewhere in a message or a title; changes nothing.

Each text is looked through as it is: Chinese has no spaces to make an index of words by, and a trigram index finds no
word of two characters, which most Chinese words are, and would be rewritten twice a second while an answer grows.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from core.chat.records import Hit

MAX_WORDS = 16
SNIPPET_CHARS = 120
# How much of a snippet stands before the word that was found.
LEAD_CHARS = 30


def find_messages(db: sqlite3.Connection, owner: str, text: str, limit: int) -> list[Hit]:
    """At most `limit` hits in the chats of `owner`, those in titles first, then the newest message first."""
    words = [word.casefold() for word in text.split()][:MAX_WORDS]
    if not words:
        return []

    def holds(found: bytes) -> bool:
        folded = found.decode("utf-8", "replace").casefold()
        return all(word in folded for word in words)

    db.create_function("holds", 1, holds, deterministic=True)
    titles = db.execute(
        "SELECT id, title, NULL, NULL, changed_s, title FROM chats"
        " WHERE owner = ? AND deleted_s IS NULL AND holds(CAST(title AS BLOB))"
        " ORDER BY changed_s DESC, id DESC LIMIT ?",
        (owner, limit),
    ).fetchall()
    messages = db.execute(
        "SELECT chats.id, title, messages.id, role, messages.created_s, text"
        " FROM messages JOIN chats ON chats.id = messages.chat"
        " WHERE owner = ? AND deleted_s IS NULL AND removed IS NULL AND holds(CAST(text AS BLOB))"
        " ORDER BY messages.id DESC",
        (owner,),
    )
    found = [_hit(row, words[0]) for row in titles]
    for row in messages:
        if len(found) >= limit:
            break
        if row[2] is not None and _is_reachable(db, row[2]):
            found.append(_hit(row, words[0]))
    return found


def _is_reachable(db: sqlite3.Connection, message: int) -> bool:
    """Whether nothing above a message was deleted together with what follows."""
    above = db.execute(
        "WITH RECURSIVE above(id, parent, removed) AS ("
        " SELECT id, parent, removed FROM messages WHERE id = ?"
        # UNION passes over what was there before: a damaged file may lead in a circle.
        " UNION SELECT m.id, m.parent, m.removed FROM messages m JOIN above ON m.id = above.parent)"
        " SELECT count(*) FROM above WHERE removed = 'cut'",
        (message,),
    )
    return not above.fetchone()[0]


def _hit(row: tuple[Any, ...], word: str) -> Hit:
    chat, title, message, role, created_s, text = row
    snippet, begin, end = cut_snippet(text, word)
    return Hit(chat, title, message, role, created_s, snippet, begin, end)


def cut_snippet(text: str, word: str) -> tuple[str, int, int]:
    """A piece of `text` on one line around its first `word` (case-folded), and where that stands in it."""
    line = " ".join(text.split())
    begin, end = find_folded(line, word)
    first = max(0, begin - LEAD_CHARS)
    before = "…" if first else ""
    last = min(len(line), max(first + SNIPPET_CHARS, end))
    after = "…" if last < len(line) else ""
    shift = len(before) - first
    return before + line[first:last] + after, begin + shift, end + shift


def find_folded(text: str, word: str) -> tuple[int, int]:
    """Where `word` stands in `text`; folding may make a text longer ("ß" is "ss"), so characters are counted."""
    place = text.casefold().find(word)
    if place < 0:
        return 0, 0
    begin = end = length = 0
    for index, character in enumerate(text):
        if length <= place:
            begin = index
        if length >= place + len(word):
            break
        length += len(character.casefold())
        end = index + 1
    return begin, end
