"""Arguments of calls that are no JSON: literals of Python, and Gemma 4's objects, as far as they are written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Of deeper ones nothing is read: a model may be told to open brackets without end.
MAX_DEPTH = 20
BLANK = re.compile(r"\s*")
BETWEEN = re.compile(r"[\s,]*")
KEY = re.compile(r"[\w.$-]{1,256}")
NAME = re.compile(r"[\w.-]{1,256}")
NUMBER = re.compile(r"[+-]?[0-9]{1,40}(?:\.[0-9]{0,40})?(?:[eE][+-]?[0-9]{1,2})?")
WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
WORD = re.compile("|".join(WORDS))
ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


@dataclass(frozen=True, slots=True)
class Syntax:
    """How literals are written. `quotes`: what a text begins and ends with. `has_escapes`: a backslash in it belongs to
    the next character."""

    quotes: tuple[str, ...]
    has_escapes: bool


PYTHON = Syntax(("'", '"'), has_escapes=True)
GEMMA = Syntax(('<|"|>',), has_escapes=False)


class _Unfinished(Exception):
    """The text ends, or goes on in another way, before a value is whole."""


def read_members(
    text: str, begin: int, syntax: Syntax, sign: str, close: str
) -> tuple[list[tuple[str, Any]], int | None]:
    """The members `key` `sign` `value` that are whole from `begin` on, and where `close` ends them; None without it."""
    found: list[tuple[str, Any]] = []
    try:
        for member in _members(text, begin, syntax, sign, close, 0):
            if isinstance(member, int):
                return found, member
            found.append(member)
    except _Unfinished:
        pass
    return found, None


def _members(
    text: str, place: int, syntax: Syntax, sign: str, close: str, depth: int
) -> Iterator[tuple[str, Any] | int]:
    """Each member, and then the place after `close`."""
    while True:
        place = _after(BETWEEN, text, place)
        if text.startswith(close, place):
            yield place + len(close)
            return
        key, place = _key(text, place, syntax)
        place = _after(BLANK, text, place)
        if not text.startswith(sign, place):
            raise _Unfinished
        value, place = _value(text, _after(BLANK, text, place + len(sign)), syntax, depth)
        yield key, value


def _key(text: str, place: int, syntax: Syntax) -> tuple[str, int]:
    if (quote := _quote(text, place, syntax)) is not None:
        return _string(text, place, quote, syntax)
    if (bare := KEY.match(text, place)) is None:
        raise _Unfinished
    return bare[0], bare.end()


def _value(text: str, place: int, syntax: Syntax, depth: int) -> tuple[Any, int]:
    """A value and the place after it, which is never the text's end: a number could go on there."""
    if depth > MAX_DEPTH:
        raise _Unfinished
    if (quote := _quote(text, place, syntax)) is not None:
        return _string(text, place, quote, syntax)
    if text.startswith("{", place):
        members: dict[str, Any] = {}
        for member in _members(text, place + 1, syntax, ":", "}", depth + 1):
            if isinstance(member, int):
                return members, member
            members[member[0]] = member[1]
    if text.startswith("[", place):
        items: list[Any] = []
        place = _after(BETWEEN, text, place + 1)
        while not text.startswith("]", place):
            item, place = _value(text, place, syntax, depth + 1)
            items.append(item)
            place = _after(BETWEEN, text, place)
        return items, place + 1
    if (word := WORD.match(text, place)) is not None and word.end() < len(text):
        return WORDS[word[0]], word.end()
    if (number := NUMBER.match(text, place)) is not None and number.end() < len(text):
        return (int(number[0]) if re.fullmatch(r"[+-]?[0-9]+", number[0]) else float(number[0])), number.end()
    raise _Unfinished


def _quote(text: str, place: int, syntax: Syntax) -> str | None:
    return next((one for one in syntax.quotes if text.startswith(one, place)), None)


def _string(text: str, place: int, quote: str, syntax: Syntax) -> tuple[str, int]:
    """A text in quotes. LFM2.5's template escapes none within: one that no end of a value follows is a letter."""
    begin = end = place + len(quote)
    while (end := text.find(quote, end)) >= 0:
        after = _after(BLANK, text, end + len(quote))
        is_escaped = syntax.has_escapes and _num_backslashes(text, end) % 2 == 1
        if not is_escaped and after == len(text):
            break
        if not is_escaped and (not syntax.has_escapes or text[after] in ",)]}:"):
            body = text[begin:end]
            return ESCAPE.sub(_unescaped, body) if syntax.has_escapes else body, end + len(quote)
        end += len(quote)
    raise _Unfinished


def _num_backslashes(text: str, end: int) -> int:
    return end - len(text[:end].rstrip("\\")) if text[end - 1 : end] == "\\" else 0


def _unescaped(match: re.Match[str]) -> str:
    kind = match[1]
    return chr(int(kind[1:], 16)) if len(kind) == 5 else ESCAPES.get(kind, kind)


def _after(pattern: re.Pattern[str], text: str, place: int) -> int:
    match = pattern.match(text, place)
    return match.end() if match else place
