"""Requests of OpenAI's Responses API as bodies of chat completions. Nothing is stored: each brings its whole talk.

https://platform.openai.com/docs/api-reference/responses says what they hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.api.dialects.dialect import Body
from core.api.dialects.reading import count_of, field_error, objects, text_of
from core.api.errors import ApiError

SAME = ("model", "temperature", "top_p", "stream")
# What would need answers of before, or change this one, and cannot be done.
REFUSED = ("previous_response_id", "conversation", "prompt", "background", "top_logprobs")
TEXT_PARTS = ("input_text", "output_text", "text")


def chat_body(body: Body) -> Body:
    """The chat completion that asks for the same. Raises ApiError."""
    for name in REFUSED:
        if body.get(name):
            raise ApiError("api_refused", field=name)
    made: Body = {name: body[name] for name in SAME if body.get(name) is not None}
    instructions = body.get("instructions")
    system = [{"role": "system", "content": text_of(instructions, "instructions")}] if instructions else []
    messages = [*system, *_messages(body.get("input"))]
    if not messages:
        raise field_error("input", "a text or a list of items is wanted")
    made |= {"messages": messages, "stream_options": {"include_usage": True}}
    if body.get("max_output_tokens") is not None:
        made["max_completion_tokens"] = count_of(body["max_output_tokens"], "max_output_tokens")
    return made | _reasoning(body) | _format(body) | _tools(body)


def _messages(given: object) -> list[Body]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[Body] = []
    thought = ""
    for place, item in enumerate(objects(given, "input")):
        field, kind = f"input.{place}", item.get("type") or "message"
        if kind == "reasoning":
            thought += _thought(item)
        elif kind == "function_call":
            _add_call(messages, item, thought)
            thought = ""
        elif kind == "function_call_output":
            output = item.get("output")
            content = output if isinstance(output, str) else _parts(output, f"{field}.output")
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        elif kind == "message":
            made = {"role": item.get("role"), "content": _parts(item.get("content"), f"{field}.content")}
            if thought and made["role"] == "assistant":
                made["reasoning_content"], thought = thought, ""
            messages.append(made)
        else:
            raise ApiError("api_part", kind=str(kind)[:100])
    return messages


def _add_call(messages: list[Body], item: Body, thought: str) -> None:
    """To the message of the assistant's that it belongs to."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    if thought:
        messages[-1]["reasoning_content"] = thought
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    messages[-1].setdefault("tool_calls", []).append(
        {"id": item.get("call_id"), "type": "function", "function": function}
    )


def _parts(given: object, field: str) -> Any:
    if isinstance(given, str):
        return given
    parts = []
    for part in objects(given, field):
        kind = part.get("type")
        parts.append({"type": "text" if kind in TEXT_PARTS else kind, "text": part.get("text")})
    return parts


def _thought(item: Body) -> str:
    parts = objects(item.get("content"), "reasoning.content") or objects(item.get("summary"), "reasoning.summary")
    return "\n".join(text_of(part.get("text"), "reasoning.content") for part in parts)


def _reasoning(body: Body) -> Body:
    given = body.get("reasoning") or {}
    if not isinstance(given, Mapping):
        raise field_error("reasoning", "an object is wanted")
    return {"reasoning_effort": given["effort"]} if given.get("effort") is not None else {}


def _format(body: Body) -> Body:
    text = body.get("text") or {}
    wanted = text.get("format") if isinstance(text, Mapping) else None
    if wanted is None:
        return {}
    if not isinstance(wanted, Mapping):
        raise field_error("text.format", "an object is wanted")
    if wanted.get("type") != "json_schema":
        return {"response_format": dict(wanted)}
    about = {name: wanted[name] for name in ("name", "schema", "strict", "description") if name in wanted}
    return {"response_format": {"type": "json_schema", "json_schema": about}}


def _tools(body: Body) -> Body:
    tools, choice = objects(body.get("tools"), "tools"), body.get("tool_choice")
    if not tools:
        return {}
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        names = [one.get("name") for one in objects(choice.get("tools"), "tool_choice.tools")]
        tools, choice = [tool for tool in tools if tool.get("name") in names], choice.get("mode")
    elif isinstance(choice, Mapping):
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    made: Body = {"tools": [_tool(tool, place) for place, tool in enumerate(tools)]}
    if choice is not None:
        made["tool_choice"] = choice
    if body.get("parallel_tool_calls") is not None:
        made["parallel_tool_calls"] = body["parallel_tool_calls"]
    return made


def _tool(tool: Body, place: int) -> Body:
    """Tools that OpenAI itself would run are none of ours."""
    if tool.get("type") != "function":
        raise ApiError("api_refused", field=f"tools.{place}.type")
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}
