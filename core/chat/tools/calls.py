"""Calls of tools as values, and JSON that is still being written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.common.values import printable

DECODER = json.JSONDecoder()
BLANKS = " \t\r\n"
# What models call the parts of a call.
NAME_KEYS, ARGUMENT_KEYS = ("name", "tool_name", "function"), ("arguments", "parameters", "args", "input")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call. `parameters` is the JSON schema of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    @property
    def definition(self) -> dict[str, Any]:
        """As chat templates read it."""
        about = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": about}

    def value_of(self, name: str, text: str) -> Any:
        """An argument that came as plain `text`, as its schema wants it."""
        properties = self.parameters.get("properties")
        schema = properties.get(name) if isinstance(properties, Mapping) else None
        kind = schema.get("type") if isinstance(schema, Mapping) else None
        if kind == "string" or (isinstance(kind, list) and "string" in kind and text != "null"):
            return text
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text


Tools = Mapping[str, Tool]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call as far as it was written. `arguments` is JSON, or a beginning of it that only grows."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Member:
    """One value of a JSON object, as it is written."""

    text: str
    is_whole: bool


def read_object(text: str, begin: int) -> tuple[dict[str, Member], int | None]:
    """The members of the JSON object that begins at `begin`, and where it ends; None while it does not."""
    members: dict[str, Member] = {}
    place = begin + 1
    while True:
        while place < len(text) and text[place] in BLANKS + ",":
            place += 1
        if place >= len(text):
            return members, None
        if text[place] == "}":
            return members, place + 1
        key, key_end = _read_value(text, place)
        place = _skip(text, key_end) if key_end is not None else len(text)
        if not isinstance(key, str) or place >= len(text) or text[place] != ":":
            return members, None
        value_begin = _skip(text, place + 1)
        value, end = _read_value(text, value_begin)
        # A number at the end may go on.
        if end is None or (end == len(text) and isinstance(value, int | float) and not isinstance(value, bool)):
            members[key] = Member(text[value_begin:], False)
            return members, None
        members[key] = Member(text[value_begin:end], True)
        place = end


def read_objects(text: str) -> Iterator[dict[str, Member]]:
    """The objects of a list, or of those that follow each other with anything but braces between."""
    at: int | None = text.find("{")
    while at is not None and at >= 0:
        members, end = read_object(text, at)
        yield members
        at = text.find("{", end) if end is not None else None


def object_text(text: str) -> str:
    """The first object of JSON in `text`, as far as it is written."""
    begin = text.find("{")
    return "" if begin < 0 else text[begin : read_object(text, begin)[1]]


def call_of(members: Mapping[str, Member]) -> ToolCall | None:
    """The call that an object describes; None as long as its name is not known."""
    # Some write {"type": "function", "function": {...}}.
    inner = members.get("function")
    if inner is not None and inner.text.startswith("{"):
        return call_of(read_object(inner.text, 0)[0])
    name = _first(members, NAME_KEYS)
    if name is None or not name.is_whole:
        return None
    said, _ = _read_value(name.text, 0)
    if not isinstance(said, str) or not said:
        return None
    return ToolCall(said, arguments_of(_first(members, ARGUMENT_KEYS)))


def arguments_of(member: Member | None) -> str:
    """The arguments as JSON. Some models write that JSON as a text once more."""
    if member is None:
        return ""
    if not member.text.startswith('"'):
        return member.text
    inner, _ = _read_value(member.text, 0) if member.is_whole else ("", None)
    return inner if isinstance(inner, str) else ""


def written(name: str, arguments: Sequence[tuple[str, Any]], is_whole: bool) -> ToolCall:
    """A call whose arguments came one by one, so that their JSON only grows."""
    pairs = ", ".join(f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"
                      for key, value in arguments)  # fmt: skip
    pairs = printable(pairs)
    return ToolCall(name, "{" + pairs + "}" if is_whole else "{" + pairs if pairs else "")


def _first(members: Mapping[str, Member], names: Sequence[str]) -> Member | None:
    return next((members[name] for name in names if name in members), None)


def _skip(text: str, place: int) -> int:
    while place < len(text) and text[place] in BLANKS:
        place += 1
    return place


def _read_value(text: str, place: int) -> tuple[Any, int | None]:
    try:
        value, end = DECODER.raw_decode(text, place)
    except (ValueError, RecursionError):
        return None, None
    return value, end
