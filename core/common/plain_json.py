"""JSON from untrusted sources: counted before anything is built, and without the numbers that JSON does not have."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

MAX_VALUES = 1_000_000
# Numbers beyond what a file's size or a count can be are read as floats, which no place takes for one of these.
MAX_WHOLE_DIGITS = 18
PIECE_CHARS = 2**16


class InvalidContent(ValueError):
    """What is wrong with a file's text, in words that quote none of it."""


def load_json(data: str | bytes, max_values: int = MAX_VALUES) -> Any:
    """The value in `data`. Raises ValueError or RecursionError for what is no JSON, and for more than `max_values`."""
    text = data if isinstance(data, str) else data.decode(json.detect_encoding(data))
    check_num_values(text, max_values)
    return json.loads(text, parse_int=_whole)


def check_num_values(text: str, limit: int) -> None:
    """Raises ValueError for more lists, objects and commas than `limit`: a megabyte of brackets would become thirty in
    memory."""
    if len(text) <= limit:
        return
    counter = ValueCounter(marks=b"[{,")
    for begin in range(0, len(text), PIECE_CHARS):
        counter.take(text[begin : begin + PIECE_CHARS].encode("utf-8", "surrogatepass"))
        if counter.num_values > limit + 1:
            raise ValueError(f"more than {limit:,} values")


class ValueCounter:
    """Counts the values of a JSON text, piece by piece.

    Every value but the first stands behind one of `marks`. With all four, `num_values` counts names in objects too, and
    is never less than what a parser builds. In text that is no JSON it may be wrong from the first error on: a parser
    goes no further either.
    """

    def __init__(self, marks: bytes = b"[{,:") -> None:
        self.num_values = 1
        self._marks = marks
        self._is_in_text = False
        self._half_escape = b""

    def take(self, piece: bytes) -> None:
        piece = self._half_escape + piece
        num_backslashes = len(piece) - len(piece.rstrip(b"\\"))
        self._half_escape = b"\\" * (num_backslashes % 2)
        piece = piece.removesuffix(self._half_escape).replace(rb"\\", b"").replace(rb"\"", b"")
        parts = piece.split(b'"')
        outside = b"".join(parts[self._is_in_text :: 2])
        self.num_values += sum(outside.count(mark) for mark in self._marks)
        self._is_in_text ^= len(parts) % 2 == 0


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
