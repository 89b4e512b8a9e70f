"""The fields of requests that say what form an answer has to have, by OpenAI's, vLLM's and llama.cpp's names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

from core.api.errors import ApiError
from core.engine.request_options import Grammar

MAX_CHOICES, MAX_SHOWN_CHARS = 1000, 200
ANY_OBJECT, ANY_JSON = Grammar("json", '{"type": "object"}'), Grammar("json", "{}")
SCHEMA: dict[str, Any] = {"anyOf": [{"type": "object"}, {"type": "string"}, {"type": "null"}]}
TEXT: dict[str, Any] = {"type": ["string", "null"]}
FORMAT_SCHEMA: dict[str, Any] = {
    "description": "text, json_object, or json_schema with the schema.",
    "anyOf": [
        {"type": "object", "properties": {"type": {"const": "text"}}, "required": ["type"]},
        {"type": "object", "properties": {"type": {"const": "json_object"}, "schema": SCHEMA}, "required": ["type"]},
        {
            "type": "object",
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {"type": "object", "properties": {"schema": {"type": "object"}}, "required": ["schema"]},
            },
            "required": ["type", "json_schema"],
        },
        {"type": "null"},
    ],
}
CHOICE_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "array", "items": {"type": "string"}, "maxItems": MAX_CHOICES}, {"type": "null"}]
}
# What asks for nothing: some clients send it with every request.
NOTHING: tuple[Any, ...] = (None, "", {}, [])


def _as_format(value: object) -> Grammar | None:
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(kind, str):
        raise ValueError('an object with a "type" is wanted')
    if kind == "text":
        return None
    if kind == "json_object":
        # llama.cpp has a schema here, too.
        return _as_schema(value.get("schema")) or ANY_OBJECT
    if kind != "json_schema":
        raise ApiError("api_refused", field="response_format")
    inner = value.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if not isinstance(schema, dict):
        raise ValueError("json_schema.schema is missing, or no object")
    return _as_schema(schema) or ANY_JSON


def _as_schema(value: object) -> Grammar | None:
    if any(type(value) is type(one) and value == one for one in NOTHING):
        return None
    if isinstance(value, str):
        return Grammar("json", value)
    if not isinstance(value, dict):
        raise ValueError("a JSON schema is wanted")
    return Grammar("json", json.dumps(value, ensure_ascii=False))


def _as_text(kind: Any) -> Any:
    def read(value: object) -> Grammar | None:
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise ValueError("a text is wanted")
        return Grammar(kind, value)

    return PlainValidator(read)


def _as_choice(value: object) -> Grammar | None:
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise ValueError("a list of texts is wanted")
    if len(value) > MAX_CHOICES:
        raise ValueError(f"at most {MAX_CHOICES} texts are taken")
    return Grammar("regex", "|".join(map(escaped, value)))


def escaped(text: str) -> str:
    """A pattern that only `text` matches."""
    return re.sub(r"([\\.+*?()|\[\]{}^$#&~\-])", r"\\\1", text)


def _as_structured(value: object) -> Grammar | None:
    """vLLM's newer form of all of them in one object."""
    if value in (None, {}):
        return None
    if not isinstance(value, dict):
        raise ValueError("an object is wanted")
    given = {name: one for name, one in value.items() if one not in (None, False)}
    readers = {
        "json": _as_schema,
        "json_object": lambda _: ANY_OBJECT,
        "regex": lambda one: Grammar("regex", _text(one)),
        "choice": _as_choice,
        "grammar": lambda one: Grammar("gbnf", _text(one)),
    }
    wanted = [name for name in given if name in readers]
    if len(wanted) != 1:
        raise ValueError(f"one of {', '.join(readers)} is wanted")
    return readers[wanted[0]](given[wanted[0]])


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is wanted")
    return value


Format = Annotated[Grammar | None, PlainValidator(_as_format), WithJsonSchema(FORMAT_SCHEMA)]
Schema = Annotated[Grammar | None, PlainValidator(_as_schema), WithJsonSchema(SCHEMA)]
Pattern = Annotated[Grammar | None, _as_text("regex"), WithJsonSchema(TEXT)]
ContextFree = Annotated[Grammar | None, _as_text("gbnf"), WithJsonSchema(TEXT)]
Alternatives = Annotated[Grammar | None, PlainValidator(_as_choice), WithJsonSchema(CHOICE_SCHEMA)]
Structured = Annotated[
    Grammar | None,
    PlainValidator(_as_structured),
    WithJsonSchema({"type": ["object", "null"], "description": "One of json, json_object, regex, choice, grammar."}),
]


def only_one(given: Mapping[str, Grammar | None]) -> Grammar | None:
    """The grammar among the fields of a request. Raises ApiError where there are several that differ."""
    found = {name: grammar for name, grammar in given.items() if grammar is not None}
    if len(set(found.values())) > 1:
        *_, last = found
        raise ApiError("api_field", field=last, why=f"only one of {', '.join(found)} can be asked for")
    return next(iter(found.values()), None)
