"""Requests of Anthropic's Messages API as bodies of our chat completions.

https://docs.anthropic.com/en/api/messages says what they hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from core.api.dialects.dialect import Body
from core.api.dialects.reading import count_of, field_error, listed, objects, text_of
from core.api.errors import ApiError
from core.api.json_text import to_json

SAME = ("model", "max_tokens", "temperature", "top_p", "top_k", "stream")
# What would change the answer and cannot be done.
REFUSED = ("container", "mcp_servers")
EFFORTS = {"max": "xhigh"}
CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_body(body: Body) -> Body:
    """The chat completion that asks for the same. Raises ApiError."""
    for name in REFUSED:
        if body.get(name):
            raise ApiError("api_refused", field=name)
    messages = [*_system(body.get("system")), *_messages(body.get("messages"))]
    made: Body = {name: body[name] for name in SAME if body.get(name) is not None}
    made |= {"messages": messages, "stop": body.get("stop_sequences"), "stream_options": {"include_usage": True}}
    made |= _thinking(body) | _output(body) | _tools(body)
    if messages and messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        # The beginning of the answer, which goes on from there.
        made["continue_final_message"] = True
    return made


def _system(given: object) -> list[Body]:
    text = _joined(given, "system") if given else ""
    return [{"role": "system", "content": text}] if text else []


def _messages(given: object) -> list[Body]:
    """One message of each speaker in turn: Anthropic takes several of one, and joins them."""
    messages: list[Body] = []
    for place, message in enumerate(objects(given, "messages")):
        field = f"messages.{place}"
        role = message.get("role")
        if role not in ("user", "assistant", "system"):
            raise field_error(f"{field}.role", "user, assistant or system is wanted")
        made = _assistant(message, field) if role == "assistant" else _said(role, message, field)
        for one in made:
            if messages and one["role"] == messages[-1]["role"] and one["role"] in ("user", "assistant"):
                _join(messages[-1], one)
            else:
                messages.append(one)
    for message in messages:
        if thoughts := message.pop("thoughts", None):
            message["reasoning_content"] = "\n".join(thoughts)
        if message["role"] == "assistant":
            # As OpenAI's own messages are that call tools and say nothing.
            message["content"] = message["content"] or None
    return messages


def _said(role: str, message: Body, field: str) -> Iterator[Body]:
    """What the user says; the results of tools among it are messages of their own, before the rest."""
    rest = []
    for place, block in enumerate(_blocks(message.get("content"), f"{field}.content")):
        if block.get("type") == "tool_result":
            content = _joined(block.get("content") or "", f"{field}.content.{place}.content")
            yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content}
        else:
            rest.append(block)
    if rest:
        yield {"role": role, "content": [_part(block) for block in rest]}


def _assistant(message: Body, field: str) -> Iterator[Body]:
    parts, calls, thoughts = [], [], []
    for place, block in enumerate(_blocks(message.get("content"), f"{field}.content")):
        kind = block.get("type")
        if kind == "thinking":
            thoughts.append(text_of(block.get("thinking"), f"{field}.content.{place}.thinking"))
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": to_json(block.get("input") or {})}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind != "redacted_thinking":  # Nobody here can read one.
            parts.append(_part(block))
    yield {"role": "assistant", "content": parts, "thoughts": thoughts} | ({"tool_calls": calls} if calls else {})


def _join(first: Body, second: Body) -> None:
    """Add to the lists of the first: of thousands of messages, each is copied once."""
    if first["content"] and second["content"]:
        first["content"].append({"type": "text", "text": "\n\n"})
    for name in ("content", "thoughts", "tool_calls"):
        if name in second:
            first.setdefault(name, []).extend(second[name])


def _blocks(given: object, field: str) -> list[Body]:
    return [{"type": "text", "text": given}] if isinstance(given, str) else objects(given, field)


def _part(block: Body) -> Body:
    """Other kinds are refused by the message that they become part of."""
    return {"type": block.get("type"), "text": block.get("text")}


def _joined(given: object, field: str) -> str:
    """The text of blocks that can be nothing else."""
    texts = []
    for place, block in enumerate(_blocks(given, field)):
        if block.get("type") != "text":
            raise ApiError("api_part", kind=str(block.get("type"))[:100])
        texts.append(text_of(block.get("text"), f"{field}.{place}.text"))
    return "\n\n".join(texts)


def _thinking(body: Body) -> Body:
    """Nobody who asks for no thoughts waits for them."""
    given = body.get("thinking")
    if given is None:
        return {"enable_thinking": False}
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind not in ("enabled", "disabled", "adaptive", "between_tools"):
        raise field_error("thinking.type", "enabled, adaptive or disabled is wanted")
    made: Body = {"enable_thinking": kind != "disabled"}
    if kind == "enabled" and given.get("budget_tokens") is not None:
        made["thinking_budget"] = count_of(given["budget_tokens"], "thinking.budget_tokens")
    return made


def _output(body: Body) -> Body:
    given = body.get("output_config") or {}
    if not isinstance(given, Mapping):
        raise field_error("output_config", "an object is wanted")
    made: Body = {}
    if (effort := given.get("effort")) is not None:
        made["reasoning_effort"] = EFFORTS.get(effort, effort) if isinstance(effort, str) else effort
    wanted = given.get("format") or body.get("output_format")
    if wanted:
        schema = wanted.get("schema") if isinstance(wanted, Mapping) else None
        if schema is None or wanted.get("type") != "json_schema":
            raise field_error("output_config.format", "json_schema with a schema is wanted")
        made["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    return made


def _tools(body: Body) -> Body:
    tools = [_tool(tool, place) for place, tool in enumerate(listed(body.get("tools"), "tools"))]
    if not tools:
        return {}
    made: Body = {"tools": tools}
    choice = body.get("tool_choice")
    if choice is None:
        return made
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind == "tool":
        made["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    elif isinstance(kind, str) and kind in CHOICES:
        made["tool_choice"] = CHOICES[kind]
    else:
        raise field_error("tool_choice.type", "auto, any, tool or none is wanted")
    return made | ({"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {})


def _tool(tool: Any, place: int) -> Body:
    """Tools that Anthropic itself would run are none of ours."""
    if not isinstance(tool, Mapping) or not isinstance(tool.get("name"), str):
        raise field_error(f"tools.{place}", "an object with a name is wanted")
    if tool.get("type") not in (None, "custom"):
        raise ApiError("api_refused", field=f"tools.{place}.type")
    function = {"name": tool["name"], "parameters": tool.get("input_schema") or {"type": "object"}}
    if tool.get("description"):
        function["description"] = tool["description"]
    return {"type": "function", "function": function}
