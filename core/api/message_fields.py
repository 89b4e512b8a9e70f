"""A chat's messages and its template's variables as a client may send them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from core.api.errors import ApiError
from core.api.strict import Strict
from core.api.tool_fields import MAX_ID_CHARS, CallFields

# Far more than a context holds.
MAX_MESSAGES = 10_000
MAX_SHOWN_CHARS = 200
TEXT: dict[str, Any] = {"type": "string"}


CONTENT_SCHEMA: dict[str, Any] = {
    "description": "Null, or nothing, for the assistant and tools only.",
    "anyOf": [
        TEXT,
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": TEXT},
                "required": ["type", "text"],
            },
        },
        {"type": "null"},
    ],
}


class Message(Strict):
    """`reasoning_content` is what the assistant thought before its `content`: the model's template decides about it."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: CallFields | None = Field(None, description="What the assistant called.")
    tool_call_id: Annotated[str, Field(max_length=MAX_ID_CHARS)] | None = Field(
        None, description="Which of the calls a message of a tool answers."
    )
    reasoning_content: str | None = Field(None, validation_alias=AliasChoices("reasoning_content", "reasoning"))
    content: Annotated[str, WithJsonSchema(CONTENT_SCHEMA)] = Field(None, validate_default=True)

    @field_validator("content", mode="plain")
    @classmethod
    def read_content(cls, value: object, info: ValidationInfo) -> str:
        """One text, however many parts it came in. Raises ApiError for a part that is none."""
        if isinstance(value, str):
            return value
        if value is None and info.data.get("role") in ("assistant", "tool"):
            return ""
        if not isinstance(value, list):
            raise ValueError("a text or a list of text parts is wanted")
        return "".join(map(_text_of, value))


def _text_of(part: object) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise ValueError('every part has to be an object with a "type"')
    text = part.get("text")
    if part["type"] != "text" or not isinstance(text, str):
        raise ApiError("api_part", kind=part["type"][:MAX_SHOWN_CHARS])
    return text


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
MAX_VARIABLES, MAX_VARIABLE_CHARS = 16, 1000
VARIABLE = re.compile(r"[A-Za-z_]\w{0,63}")


def _as_variables(value: object) -> dict[str, Any]:
    found = {} if value is None else value
    if not isinstance(found, dict) or len(found) > MAX_VARIABLES:
        raise ValueError(f"an object with at most {MAX_VARIABLES} fields is wanted")
    for name, one in found.items():
        if not VARIABLE.fullmatch(name) or not isinstance(one, (str, bool, int, float, type(None))):
            raise ValueError("texts, numbers, true and false are taken, each with a plain name")
        if isinstance(one, str) and len(one) > MAX_VARIABLE_CHARS:
            raise ValueError(f"a text of at most {MAX_VARIABLE_CHARS} characters is wanted")
    return found


VARIABLES_SCHEMA: dict[str, Any] = {
    "description": "Variables for the model's template, such as enable_thinking.",
    "anyOf": [
        {
            "type": "object",
            "maxProperties": MAX_VARIABLES,
            "propertyNames": {"pattern": r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"},
            "additionalProperties": {
                "anyOf": [
                    {"type": "string", "maxLength": MAX_VARIABLE_CHARS},
                    {"type": ["number", "boolean", "null"]},
                ]
            },
        },
        {"type": "null"},
    ],
}
Variables = Annotated[dict[str, Any], PlainValidator(_as_variables), WithJsonSchema(VARIABLES_SCHEMA)]
