"""How the text of a small file becomes plain values, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from core.common.errors import DeckError
from core.common.plain_json import InvalidContent, finite, no_number
from core.common.values import printable

PARSE_ERRORS = (ValueError, OverflowError, TypeError, KeyError, AttributeError, RecursionError, DeckError)
WORDS: Mapping[type[Exception], str] = {UnicodeDecodeError: "not UTF-8", RecursionError: "nested too deeply"}


@dataclass(frozen=True, slots=True)
class Codec:
    """How a file's text becomes plain values, and back. `load` raises one of PARSE_ERRORS for what is no such text."""

    load: Callable[[str], Any]
    dump: Callable[[Any], str]


def load_json(text: str) -> Any:
    """Strictly: one of two values of the same name, or a number that JSON does not have, would be lost by a change."""
    return json.loads(text, object_pairs_hook=_once, parse_constant=no_number, parse_float=finite)


def dump_json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    # Half characters have no UTF-8, but JSON can write them.
    return text if text == printable(text) else json.dumps(value, indent=1, allow_nan=False) + "\n"


JSON = Codec(load_json, dump_json)


def texts_by_name(value: Any) -> dict[str, str]:
    """`value` as texts by name. Raises TypeError for anything else."""
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise TypeError
    return value


def problem_of(error: Exception) -> str:
    """What is wrong and where, without a word of the file: it may hold secrets."""
    mark = getattr(error, "problem_mark", None) or getattr(error.__cause__, "problem_mark", None)
    if isinstance(error, InvalidContent):
        return str(error)
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}"
    if mark is not None:
        return f"line {mark.line + 1}, column {mark.column + 1}"
    return WORDS.get(type(error), "a value of the wrong kind")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise InvalidContent("a name stands there twice")
    return values
