"""The fields of requests that say how tokens are drawn, with the forms that clients send them in."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainValidator, WithJsonSchema

from core.common.plain_json import load_json
from core.engine.request_options import MAX_BIAS, MAX_BIASED
from core.engine.sampling_params import MAX_BREAKER_CHARS, MAX_BREAKERS, SAMPLING_RANGES

NUMBER = {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS}
BIAS_SCHEMA: dict[str, Any] = {
    "description": "What is added to the logits of tokens, by their ids.",
    "anyOf": [
        {"type": "object", "maxProperties": MAX_BIASED, "propertyNames": {"pattern": r"^\d{1,9}$"},
         "additionalProperties": NUMBER},
        {"type": "array", "maxItems": MAX_BIASED,
         "items": {"type": "array", "prefixItems": [{"type": "integer", "minimum": 0, "maximum": 10**9 - 1}, NUMBER],
                   "minItems": 2, "maxItems": 2}},
        {"type": "null"},
    ],
}  # fmt: skip
BREAKERS_SCHEMA: dict[str, Any] = {
    "description": "A repetition counts anew after each of these texts.",
    "anyOf": [
        {"type": "array", "items": {"type": "string", "maxLength": MAX_BREAKER_CHARS}, "maxItems": MAX_BREAKERS},
        {"const": ""},
        {"type": "null"},
    ],
}


def within(name: str) -> Any:
    low, high = SAMPLING_RANGES[name]
    return Field(ge=low, le=high)


def _as_bias(value: object) -> tuple[tuple[int, float], ...]:
    pairs: Any = value.items() if isinstance(value, dict) else value if value is not None else ()
    if not isinstance(value, dict | list | None) or len(pairs) > MAX_BIASED:
        raise ValueError(f"an object is wanted that has at most {MAX_BIASED} ids of tokens, each with a number")
    return tuple(map(_as_pair, pairs))


def _as_pair(pair: Any) -> tuple[int, float]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError("every entry has to be the id of a token and a number")
    token, bias = pair
    # JSON has texts for an object's names. llama.cpp has pairs.
    if isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 10:
        token = int(token)
    if type(token) is not int or not 0 <= token < 10**9:
        raise ValueError("the id of a token is a whole number from 0 on")
    if type(bias) not in (int, float) or not -MAX_BIAS <= bias <= MAX_BIAS:
        raise ValueError(f"a bias is a number from -{MAX_BIAS:g} to {MAX_BIAS:g}")
    return token, float(bias)


def _as_breakers(value: object) -> tuple[str, ...] | None:
    """A list of texts, or the JSON of one, as SillyTavern sends it."""
    if value is None or value == "":
        return None
    if isinstance(value, str) and len(value) <= MAX_BREAKERS * MAX_BREAKER_CHARS:
        try:
            value = load_json(value if value.lstrip().startswith("[") else f"[{value}]")
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError("a list of texts is wanted")
    if len(value) > MAX_BREAKERS or any(len(one) > MAX_BREAKER_CHARS for one in value):
        raise ValueError(f"at most {MAX_BREAKERS} texts of at most {MAX_BREAKER_CHARS} characters are taken")
    return tuple(one for one in value if one)


LogitBias = Annotated[tuple[tuple[int, float], ...], PlainValidator(_as_bias), WithJsonSchema(BIAS_SCHEMA)]
Breakers = Annotated[tuple[str, ...] | None, PlainValidator(_as_breakers), WithJsonSchema(BREAKERS_SCHEMA)]
