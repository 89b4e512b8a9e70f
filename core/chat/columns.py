"""Plain values as the history's tables keep them: JSON that can always be written, read and shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from core.chat.records import Thought
from core.common.values import is_whole, printable
from core.documents.document import Document, file_name


def to_column(values: dict[str, Any]) -> str:
    """Half characters become a mark: a text that holds one could be neither asked nor exported."""
    return printable(json.dumps(values, ensure_ascii=False))


def from_column(text: str) -> dict[str, Any]:
    """The reverse; also of what an older version wrote, and nothing where the row is damaged: its chat still opens."""
    if text == "{}":
        return {}
    try:
        values = json.loads(text)
        if "\\ud" in text.lower():
            values = json.loads(to_column(values))
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def thought_to_column(thought: Thought | None) -> str:
    return "" if thought is None else to_column(asdict(thought))


def thought_from_column(text: str) -> Thought | None:
    """The reverse; no thought where there is none or the row is damaged."""
    values = from_column(text) if text else {}
    found, opening, closing = (values.get(name, "") for name in ("text", "opening", "closing"))
    if not values or not all(isinstance(one, str) for one in (found, opening, closing)):
        return None
    seconds = values.get("seconds")
    lasted = float(seconds) if isinstance(seconds, (int, float)) else None
    return Thought(printable(found), printable(opening), printable(closing), lasted)


def names_to_column(names: Sequence[str]) -> str:
    return printable(json.dumps(list(names), ensure_ascii=False))


def names_from_column(text: str) -> tuple[str, ...]:
    """The reverse; no names where the row is damaged."""
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    return tuple(printable(name) for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def files_to_column(files: Sequence[Document]) -> str:
    return printable(json.dumps([asdict(file) for file in files], ensure_ascii=False))


def files_from_column(text: str) -> tuple[Document, ...]:
    """The reverse; no files where the row is damaged."""
    if text == "[]":
        return ()
    try:
        return documents_of(json.loads(text))
    except (ValueError, RecursionError):
        return ()


def documents_of(values: object) -> tuple[Document, ...]:
    """The documents of a list of plain values. Raises ValueError where it is none."""
    if not isinstance(values, list):
        raise ValueError("no list")
    return tuple(_document(value) for value in values)


def _document(value: object) -> Document:
    found = value if isinstance(value, dict) else {}
    name, size, text, whole = (found.get(key) for key in ("name", "size_bytes", "text", "is_whole"))
    if not isinstance(name, str) or not isinstance(text, str) or not is_whole(size) or not isinstance(whole, bool):
        raise ValueError("no document")
    return Document(file_name(name), max(0, size), printable(text), whole)
