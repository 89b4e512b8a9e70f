"""The fields of requests that are about tools: those that may be called, whether they have to be, and earlier calls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, WithJsonSchema

from core.api.json_text import to_json
from core.api.strict import Strict
from core.chat.tools.calls import Tool

MAX_TOOLS, MAX_CALLS, MAX_NAME_CHARS, MAX_ID_CHARS = 256, 256, 128, 256
NAME_PATTERN = r"^[A-Za-z0-9_.:\-]+$"
# A schema is walked through by programs that give up at hundreds; no form that a model can fill in is so deep.
MAX_SCHEMA_DEPTH = 100
NOTHING: Mapping[str, Any] = {"type": "object", "properties": {}}
ARGUMENTS_SCHEMA = {"type": ["string", "object", "null"], "description": "JSON."}
NAMED_SCHEMA = {
    "type": "object",
    "properties": {
        "function": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
    "required": ["function"],
}


def _not_too_deep(schema: dict[str, Any]) -> dict[str, Any]:
    level: list[Any] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        inner = [one.values() if isinstance(one, dict) else one for one in level]
        level = [one for values in inner for one in values if isinstance(one, dict | list)]
        if not level:
            return schema
    raise ValueError(f"a schema of at most {MAX_SCHEMA_DEPTH} levels is taken")


class FunctionField(Strict):
    name: Annotated[str, Field(max_length=MAX_NAME_CHARS, pattern=NAME_PATTERN)]
    description: str | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(_not_too_deep)] | None = Field(
        None, description="The JSON schema of its arguments."
    )


class ToolField(Strict):
    type: Literal["function"]
    function: FunctionField


def _as_arguments(value: object) -> str:
    """JSON, also where the value itself came, as Ollama's clients keep it, or nothing for want of arguments."""
    if isinstance(value, dict):
        return to_json(value)
    if value is not None and not isinstance(value, str):
        raise ValueError("a text is wanted, which is JSON")
    return value or ""


class CalledFunction(Strict):
    name: Annotated[str, Field(max_length=MAX_NAME_CHARS)]
    arguments: Annotated[str, BeforeValidator(_as_arguments), WithJsonSchema(ARGUMENTS_SCHEMA)] = ""


class CallField(Strict):
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
    """`name` is the one tool that has to be called; `allowed`, where it is not None, the model hears of
    no others."""

    mode: Literal["auto", "none", "required"]
    name: str | None = None
    allowed: tuple[str, ...] | None = None


def _as_choice(value: object) -> ToolChoice | None:
    if value is None:
        return None
    if value in ("auto", "none", "required"):
        return ToolChoice(value)
    if value == "any":  # Mistral's word.
        return ToolChoice("required")
    if isinstance(value, dict) and value.get("type") == "allowed_tools":
        return _as_allowed(value.get("allowed_tools"))
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError("auto, none, required, or an object with a function's name is wanted")
    return ToolChoice("required", function["name"])


def _as_allowed(value: object) -> ToolChoice:
    """OpenAI's way to leave out some of the tools for one request."""
    mode, tools = (value.get("mode"), value.get("tools")) if isinstance(value, dict) else (None, None)
    if mode not in ("auto", "required") or not isinstance(tools, list):
        raise ValueError("allowed_tools wants a mode, auto or required, and a list of tools")
    functions = [tool.get("function") if isinstance(tool, dict) else None for tool in tools]
    names = tuple(one["name"] for one in functions if isinstance(one, dict) and isinstance(one.get("name"), str))
    if not names or len(names) < len(functions):
        raise ValueError("every one of allowed_tools has to be an object with a function's name")
    return ToolChoice(mode, allowed=names)


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
        {
            "type": "object",
            "properties": {
                "type": {"const": "allowed_tools"},
                "allowed_tools": {
                    "type": "object",
                    "properties": {
                        "mode": {"enum": ["auto", "required"]},
                        "tools": {"type": "array", "minItems": 1, "items": NAMED_SCHEMA},
                    },
                    "required": ["mode", "tools"],
                },
            },
            "required": ["type", "allowed_tools"],
        },
    ]
}
Choice = Annotated[ToolChoice | None, PlainValidator(_as_choice), WithJsonSchema(CHOICE_SCHEMA)]
ToolFields = Annotated[list[ToolField], Field(max_length=MAX_TOOLS)]
CallFields = Annotated[list[CallField], Field(max_length=MAX_CALLS)]


def tool_of(field: ToolField) -> Tool:
    function = field.function
    # Some languages write fields that nobody set, and templates walk through them.
    parameters = {name: value for name, value in (function.parameters or NOTHING).items() if value is not None}
    return Tool(function.name, function.description or "", parameters)
