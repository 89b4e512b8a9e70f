"""A chat's turns as the messages that a checkpoint's template reads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, Literal, NotRequired, TypedDict

from core.chat.template_renderer import Size
from core.common.values import printable
from core.engine.thought_formats import ThoughtFormat

# The fields of a message in which templates read its thought: most; then gpt-oss', and Gemma 4's.
THOUGHT_FIELDS = ("reasoning_content", "thinking", "reasoning")
MISTRAL_ID_CHARS = 9


class Turn(TypedDict):
    """One message as a chat template reads it. In a group a line that is not the speaker's has a `name` before it."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    name: NotRequired[str]
    # What the assistant thought before it.
    thought: NotRequired[str]
    # What the assistant called, each as {"id", "type", "function": {"name", "arguments"}}, and which call is answered.
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]


def message_of(turn: Turn, as_parts: bool, source: str, format: ThoughtFormat | None) -> dict[str, Any]:
    """A turn as templates read it. Some take its text as the one part of a list, as of a message with pictures.

    A thought is given to a template in the way in which that reads it, and to one that reads none not at all. The
    template decides which thoughts are in the prompt.
    """
    content, thought, more = printable(turn["content"]), printable(turn.get("thought", "")).strip(), {}
    if thought:
        field = next((name for name in THOUGHT_FIELDS if _reads_field(source, name)), None)
        if field is not None:
            more[field] = thought
        elif format is not None and _takes_apart(source, format):
            content = f"{format.open[0]}\n{thought}{format.closing}{content}"
    more |= _calls_of(turn, source)
    return {"role": turn["role"], "content": [{"type": "text", "text": content}] if as_parts else content, **more}


def _calls_of(turn: Turn, source: str) -> dict[str, Any]:
    """What a turn says of calls. Mistral's templates take no numbers of calls but those of nine letters and digits."""
    calls, answered = turn.get("tool_calls"), turn.get("tool_call_id")

    def number(text: str) -> str:
        is_right = len(text) == MISTRAL_ID_CHARS and text.isascii() and text.isalnum()
        return (
            text if is_right or "[TOOL_CALLS]" not in source else sha256(text.encode()).hexdigest()[:MISTRAL_ID_CHARS]
        )

    more: dict[str, Any] = {}
    if calls:
        more["tool_calls"] = [call | {"id": number(call["id"])} for call in calls]
    if answered is not None:
        more["tool_call_id"] = number(answered)
    if turn["role"] == "tool" and "name" in turn:
        more["name"] = turn["name"]
    return more


def with_arguments(message: dict[str, Any], reshape: Callable[[Any], Any]) -> dict[str, Any]:
    """The message with the arguments of each of its calls as `reshape`, one of ARGUMENT_FORMS, gives them."""
    if "tool_calls" not in message:
        return message
    calls = [
        call | {"function": call["function"] | {"arguments": reshape(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return message | {"tool_calls": calls}


def _as_object(arguments: Any) -> Any:
    return arguments if isinstance(arguments, dict) else {"arguments": arguments}


# How a template gets the arguments of earlier calls, until one is right. Most write JSON of the values; DeepSeek's join
# texts; some go through an object. Arguments that a model broke off are none, and each further request of their chat
# brings them again.
ARGUMENT_FORMS: tuple[Callable[[Any], Any], ...] = (lambda arguments: arguments, json.dumps, _as_object)


@lru_cache(64)
def _reads_field(source: str, name: str) -> bool:
    return re.search(rf"""\.{name}\b|['"]{name}['"]""", source) is not None


@lru_cache(64)
def _takes_apart(source: str, format: ThoughtFormat) -> bool:
    """Whether a template looks for the end of a thought in a message's text."""
    marks = "|".join(re.escape(mark) for mark in format.close)
    mark = rf"""['"](?:{marks})['"]"""
    return re.search(rf"(?:\(|\bin)\s*{mark}|{mark}\s+(?:not\s+)?in\b", source) is not None


def size_of(turns: Sequence[Turn], tools: Sequence[dict[str, Any]] = ()) -> Size:
    """How many messages and tools a template is given, and of how many characters: its output's limit follows."""
    num_chars = sum(len(turn["role"]) + len(turn["content"]) + len(turn.get("thought", "")) for turn in turns)
    called = [turn["tool_calls"] for turn in turns if "tool_calls" in turn]
    # Written with their indents they take more than as JSON.
    return len(turns) + len(tools), num_chars + sum(len(json.dumps(one)) for one in (*called, *tools))
