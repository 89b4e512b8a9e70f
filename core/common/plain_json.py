"""JSON from untrusted sources: counted before anything is built, and without the numbers that JSON does not have."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

# A text, or what begins or goes on with a value outside of one. Nothing is ever tried twice: a text that has no end is
# taken to the end of all, else it would be looked for again from each of its escaped quotes, for days.
TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{,]', re.DOTALL)
MAX_VALUES = 1_000_000
# Numbers beyond what a file's size or a count can be are read as floats, which no place takes for one of these.
MAX_WHOLE_DIGITS = 18


class InvalidContent(ValueError):
    """What is wrong with a file's text, in words that quote none of it."""


def load_json(data: str | bytes, max_values: int = MAX_VALUES) -> Any:
    """The value in `data`. Raises ValueError or RecursionError for what is no JSON, and for more than `max_values`."""
    text = data if isinstance(data, str) else data.decode(json.detect_encoding(data))
    check_num_values(text, max_values)
    return json.loads(text, parse_int=_whole)


def check_num_values(text: str, limit: int) -> None:
    """Raises ValueError for more values than `limit`: a megabyte of brackets would become thirty in memory."""
    if len(text) <= limit:
        return
    num_values = 0
    for token in TOKEN.finditer(text):
        num_values += text[token.start()] != '"'
        if num_values > limit:
            raise ValueError(f"more than {limit:,} values")


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_WHOLE_DIGITS else float(digits)


def no_number(text: str) -> NoReturn:
    """For `parse_constant`: refuses what JSON does not have."""
    raise InvalidContent(f"{text} is no number")


def finite(text: str) -> float:
    """For `parse_float`: refuses what becomes infinite."""
    value = float(text)
    if math.isinf(value):
        raise InvalidContent("too large a number")
    return value
