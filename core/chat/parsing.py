"""Values of a chat's file, taken without trust."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

from core.chat.records import CopiedMessage
from core.common.errors import DeckError
from core.common.values import quoted_json

T = TypeVar("T")
# Times beyond are milliseconds, or nonsense.
MAX_SECONDS = 4e9


class ChatFileError(DeckError):
    """A file holds no chat that can be read."""


def get(values: dict[str, Any], name: str, kind: type[T]) -> T:
    """The value of a field. Raises ChatFileError where it is missing or of another kind; true is no number."""
    value = values.get(name)
    if type(value) is not kind:
        raise ChatFileError("chat_file_damaged", name=name)
    return value


def require(value: object, known: Sequence[str], name: str) -> Any:
    """One of the `known` words. Raises ChatFileError for any other."""
    if value not in known:
        raise ChatFileError("chat_file_damaged", name=f"{name} = {quoted_json(value)}")
    return value


def seconds(value: object) -> float:
    """A time as seconds since 1970, from seconds, milliseconds or a date in words; 0 where it says nothing."""
    if isinstance(value, str):
        return _from_words(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_SECONDS * 1000:
        return 0.0
    return value / 1000 if value > MAX_SECONDS else float(value)


def _from_words(text: str) -> float:
    for parse in (datetime.fromisoformat, lambda one: datetime.strptime(one, "%B %d, %Y %I:%M%p")):
        try:
            time_s = parse(text).timestamp()
            return time_s if 0 <= time_s <= MAX_SECONDS else 0.0
        except (ValueError, OverflowError, OSError):
            continue
    return 0.0


def show_one(messages: Sequence[CopiedMessage]) -> list[CopiedMessage]:
    """Exactly one version shown everywhere: the first that says so, else the last one."""
    chosen: dict[int | None, int] = {}
    for index, message in enumerate(messages):
        if message.parent not in chosen or not messages[chosen[message.parent]].is_shown:
            chosen[message.parent] = index
    shown = set(chosen.values())
    return [replace(message, is_shown=index in shown) for index, message in enumerate(messages)]
