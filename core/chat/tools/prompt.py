"""Tools in a prompt: by the model's own template, else by a text of ours; and calls that a model has to make."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from core.chat.template_messages import Turn
from core.chat.tools.calls import Tool, Tools
from core.chat.truncation import join_texts
from core.engine.request_options import Grammar

# Where a template's own code begins and ends, and the variable that it is looked for.
CODE_MARK = re.compile(r"(?P<begin>\{[%{])|(?P<end>[%}]\})|\btools\b")
INTRODUCTION = """You may call functions to help with the user's request. These are the functions, one a line, as JSON:
{tools}
To call functions, write for each an object of JSON with its name and arguments, between these tags:
<tool_call>
{{"name": "the function's name", "arguments": {{"an argument": "its value"}}}}
</tool_call>
Call a function only where it helps; else answer in plain words."""


def takes_tools(source: str) -> bool:
    """Whether a chat template has a place for tools."""
    is_code = False
    for mark in CODE_MARK.finditer(source):
        if mark.lastgroup is None and is_code:
            return True
        is_code = mark.lastgroup == "begin" or (is_code and mark.lastgroup != "end")
    return False


def with_tools_told(turns: Sequence[Turn], tools: Tools) -> list[Turn]:
    """The turns for a template that knows no tools: these, calls and results stand in plain words."""
    told = [_told(turn) for turn in turns]
    if not tools:
        return told
    lines = "\n".join(json.dumps(tool.definition["function"], ensure_ascii=False) for tool in tools.values())
    text = INTRODUCTION.format(tools=lines)
    if told and told[0]["role"] == "system":
        return [Turn(role="system", content=join_texts(told[0]["content"], text)), *told[1:]]
    return [Turn(role="system", content=text), *told]


def _told(turn: Turn) -> Turn:
    if turn["role"] == "tool":
        return Turn(role="user", content=f"<tool_response>\n{turn['content']}\n</tool_response>")
    calls = turn.get("tool_calls")
    if not calls:
        return turn
    texts = [f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>" for call in calls]
    told = Turn(role=turn["role"], content="\n".join([*([turn["content"]] if turn["content"] else []), *texts]))
    if "thought" in turn:
        told["thought"] = turn["thought"]
    return told


def forced_grammar(tools: Sequence[Tool]) -> Grammar:
    """One call of one of `tools`, as an object of JSON whose arguments are as the tool's schema says."""
    return Grammar("call", _calls_schema(tools))


def free_grammar(tools: Sequence[Tool]) -> Grammar:
    """Words with as many calls as the model likes between them, in the form of INTRODUCTION."""
    return Grammar("calls", _calls_schema(tools))


def _calls_schema(tools: Sequence[Tool]) -> str:
    schemas = [_call_schema(tool, f"#/anyOf/{place}/properties/arguments") for place, tool in enumerate(tools)]
    return json.dumps({"anyOf": schemas}, ensure_ascii=False)


def _call_schema(tool: Tool, root: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": _moved(dict(tool.parameters), root)},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(value: Any, root: str) -> Any:
    """A schema whose references to itself lead to where it is now. A name of its own (`$id`) would be their base."""
    if isinstance(value, Mapping):
        return {
            key: root + one[1:] if key == "$ref" and isinstance(one, str) and _is_pointer(one) else _moved(one, root)
            for key, one in value.items()
            if key != "$id" or not isinstance(one, str)
        }
    return [_moved(one, root) for one in value] if isinstance(value, list) else value


def _is_pointer(reference: str) -> bool:
    """Whether a reference leads to a place in its own schema, not to a name (`$anchor`) or another file."""
    return reference == "#" or reference.startswith("#/")
