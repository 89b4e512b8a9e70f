"""The fields of requests that are about tools: those that may be called, whether they have to be, and earlier calls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from core.chat.tools.calls import Tool

MAX_TOOLS, MAX_CALLS, MAX_NAME_CHARS, MAX_ID_CHARS = 256, 256, 128, 256
NAME_PATTERN = r"^[A-Za-z0-9_.:\-]+$"
# A schema is walked through by programs that give up at hundreds; no form that a model can fill in is so deep.
MAX_SCHEMA_DEPTH = 100
NOTHING: Mapping[str, Any] = {"type": "object", "properties": {}}


def _not_too_deep(schema: dict[str, Any]) -> dict[str, Any]:
    level: list[Any] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        inner = [one.values() if isinstance(one, dict) else one for one in level]
        level = [one for values in inner for one in values if isinstance(one, dict | list)]
        if not level:
            return schema
    raise ValueError(f"a schema of at most {MAX_SCHEMA_DEPTH} levels is taken")


class ToolPart(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)


class FunctionField(ToolPart):
    name: Annotated[str, Field(max_length=MAX_NAME_CHARS, pattern=NAME_PATTERN)]
    description: str | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(_not_too_deep)] | None = Field(
        None, description="The JSON schema of its arguments."
    )


class ToolField(ToolPart):
    type: Literal["function"]
    function: FunctionField


class CalledFunction(ToolPart):
    name: Annotated[str, Field(max_length=MAX_NAME_CHARS)]
    arguments: str = Field("", description="JSON.")


class CallField(ToolPart):
    id: Annotated[str, Field(max_length=MAX_ID_CHARS)]
    type: Literal["function"] | None = None
    function: CalledFunction

    def as_turns_have_it(self) -> dict[str, Any]:
        """With arguments as values, which templates write down in their own way; a text that is no JSON stays one."""
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = self.function.arguments
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """`name` is the one tool that has to be called."""

    mode: Literal["auto", "none", "required"]
    name: str | None = None


def _as_choice(value: object) -> ToolChoice | None:
    if value is None:
        return None
    if value in ("auto", "none", "required"):
        return ToolChoice(value)
    if value == "any":  # Mistral's word.
        return ToolChoice("required")
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError("auto, none, required, or an object with a function's name is wanted")
    return ToolChoice("required", function["name"])


CHOICE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"enum": ["auto", "none", "required", "any", None]},
        {
            "type": "object",
            "properties": {
                "type": {"const": "function"},
                "function": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
            },
            "required": ["type", "function"],
        },
    ]
}
Choice = Annotated[ToolChoice | None, PlainValidator(_as_choice), WithJsonSchema(CHOICE_SCHEMA)]
ToolFields = Annotated[list[ToolField], Field(max_length=MAX_TOOLS)]
CallFields = Annotated[list[CallField], Field(max_length=MAX_CALLS)]


def tool_of(field: ToolField) -> Tool:
    function = field.function
    return Tool(function.name, function.description or "", function.parameters or NOTHING)
