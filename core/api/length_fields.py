"""The fields of requests that say how long an answer may be; one that is longer than the context is cut to it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, WithJsonSchema

ALL_THERE_IS, MAX_LENGTH = -1, 2**31 - 1
LENGTH_SCHEMA: dict[str, Any] = {
    "description": "-1: all that there is room for.",
    "anyOf": [{"const": ALL_THERE_IS}, {"type": "integer", "minimum": 1, "maximum": MAX_LENGTH}],
}
LENGTH_OR_NONE_SCHEMA: dict[str, Any] = {
    "description": "-1: all that there is room for. 0: the prompt is read and nothing is written.",
    "type": "integer",
    "minimum": ALL_THERE_IS,
    "maximum": MAX_LENGTH,
}


def _as_length(value: int) -> int:
    if value != ALL_THERE_IS and not 1 <= value <= MAX_LENGTH:
        raise ValueError(f"a number from 1 to {MAX_LENGTH} is wanted, or {ALL_THERE_IS} for all that there is room for")
    return value


def _as_length_or_none(value: int) -> int:
    return value if value == 0 else _as_length(value)


Tokens = Annotated[int, AfterValidator(_as_length), WithJsonSchema(LENGTH_SCHEMA)]
TokensOrNone = Annotated[int, AfterValidator(_as_length_or_none), WithJsonSchema(LENGTH_OR_NONE_SCHEMA)]
