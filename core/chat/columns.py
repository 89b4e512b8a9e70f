"""Plain values as the history's tables keep them: JSON that can always be written, read and shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from core.common.values import printable


def to_column(values: dict[str, Any]) -> str:
    """Half characters become a mark: a text that holds one could be neither asked nor exported."""
    return printable(json.dumps(values, ensure_ascii=False))


def from_column(text: str) -> dict[str, Any]:
    """The reverse; also of what an older version wrote, and nothing where the row is damaged: its chat still opens."""
    try:
        values = json.loads(text)
        if "\\ud" in text.lower():
            values = json.loads(to_column(values))
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def names_to_column(names: Sequence[str]) -> str:
    return printable(json.dumps(list(names), ensure_ascii=False))


def names_from_column(text: str) -> tuple[str, ...]:
    """The reverse; no names where the row is damaged."""
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    return tuple(printable(name) for name in names if isinstance(name, str)) if isinstance(names, list) else ()
