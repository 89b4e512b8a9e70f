"""Values of a chat's file, taken without trust."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from core.chat.records import CopiedMessage
from core.common.errors import DeckError
from core.common.values import quoted_json

T = TypeVar("T")


class ChatFileError(DeckError):
    """A file holds no chat that can be read, or something of it has no place here."""


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


def group_of(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The group of fields `name`; an empty one where there is none."""
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def groups_of(values: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The groups in the list `name`; what is none of them is passed over."""
    found = values.get(name)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def text_of(values: Mapping[str, Any], name: str) -> str:
    """The text `name`; an empty one where there is none."""
    found = values.get(name)
    return found if isinstance(found, str) else ""


def show_one(messages: Sequence[CopiedMessage]) -> list[CopiedMessage]:
    """Exactly one version shown everywhere: the first that says so, else the last one."""
    chosen: dict[int | None, int] = {}
    for index, message in enumerate(messages):
        if message.parent not in chosen or not messages[chosen[message.parent]].is_shown:
            chosen[message.parent] = index
    shown = set(chosen.values())
    return [replace(message, is_shown=index in shown) for index, message in enumerate(messages)]
