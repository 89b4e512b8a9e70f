"""Requests of Ollama's /api/chat and /api/generate as bodies of our completions.

https://github.com/ollama/ollama/blob/main/docs/api.md says what they hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from core.api.dialects.dialect import Body
from core.api.dialects.reading import field_error, listed, objects
from core.api.errors import ApiError
from core.api.json_text import to_json

# How a model is to be loaded, which is decided where it is loaded.
LOAD_OPTIONS = frozenset(
    {
        *("numa", "num_ctx", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "logits_all", "vocab_only"),
        *("use_mmap", "use_mlock", "embedding_only", "num_thread", "num_keep"),
    }
)
# What stands beside the options; among them it would make another request of this one.
BESIDE = frozenset({"model", "messages", "prompt", "suffix", "stream", "n", "best_of", "echo"})
# As long as the context lets it be; Ollama has three numbers for that.
ENDLESS = (0, -1, -2)


class NothingAsked(ApiError):
    """A request without messages: the model is to be loaded, and nothing else."""

    def __init__(self) -> None:
        super().__init__("api_field", field="messages", why="there are none")


def chat_body(body: Body) -> Body:
    """The chat completion that asks for the same. Raises ApiError, NothingAsked."""
    messages = objects(body.get("messages"), "messages")
    if not messages:
        raise NothingAsked
    return _settings(body) | {"messages": list(_messages(messages))} | _more(body)


def generate_body(body: Body) -> Body:
    """The same for a question in one text, which the model's template is put around, or that goes on as it is where it
    is raw. Raises ApiError, NothingAsked."""
    for name in ("context", "template"):
        if body.get(name):
            raise ApiError("api_refused", field=name)
    if not body.get("prompt"):
        raise NothingAsked
    if body.get("raw") or body.get("suffix"):
        return _raw_body(body)
    asked: Body = {"role": "user", "content": body["prompt"], "images": body.get("images")}
    system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
    return _settings(body) | {"messages": list(_messages([*system, asked]))} | _more(body)


def _raw_body(body: Body) -> Body:
    """The completion for a text that goes on as it is, or for what stands between it and another. Raises ApiError."""
    for name in ("images", "format", "logprobs"):
        if body.get(name):
            raise ApiError("api_refused", field=name)
    between = {"suffix": body["suffix"]} if body.get("suffix") else {}
    return {"num_predict": -1} | _settings(body) | {"prompt": body["prompt"]} | between


def name_of(body: Body) -> str | None:
    """The model's name. Raises ApiError for what is no name."""
    name = body.get("model") or body.get("name")
    if name is not None and not isinstance(name, str):
        raise field_error("model", "a text is wanted")
    return name


def lets_go(body: Body) -> bool:
    """Whether the model is to be unloaded at once, as `ollama stop` asks."""
    kept: Any = body.get("keep_alive")
    return kept in ("0", "0s") or (type(kept) in (int, float) and kept == 0)


def is_stream(body: Body) -> bool:
    """Ollama streams unless it is told otherwise."""
    return bool(body.get("stream", True))


def _settings(body: Body) -> Body:
    options = body.get("options") or {}
    if not isinstance(options, Mapping):
        raise field_error("options", "an object is wanted")
    left_out = LOAD_OPTIONS | BESIDE
    made: Body = {name: value for name, value in options.items() if name not in left_out and value is not None}
    if type(length := made.get("num_predict")) is int and length in ENDLESS:
        made["num_predict"] = -1
    return made | {
        "model": name_of(body),
        "stream": is_stream(body),
        "stream_options": {"include_usage": True},
        **{name: body[name] for name in ("logprobs", "top_logprobs") if body.get(name)},
    }


def _messages(messages: list[Body]) -> Iterator[Body]:
    """Results of tools have no numbers there: they come in the order of the calls."""
    waiting: deque[str] = deque()
    num_calls = 0
    for place, message in enumerate(messages):
        content = message.get("content") or ""
        if message.get("images"):
            raise ApiError("api_part", kind="images")
        made: Body = {"role": message.get("role"), "content": content}
        if message.get("thinking"):
            made["reasoning_content"] = message["thinking"]
        calls = objects(message.get("tool_calls"), f"messages.{place}.tool_calls")
        if calls:
            made["tool_calls"] = []
        for call in calls:
            function = call.get("function")
            if not isinstance(function, dict):
                raise field_error(f"messages.{place}.tool_calls", "objects with a function are wanted")
            waiting.append(f"call_{num_calls}")
            num_calls += 1
            about = {"name": function.get("name"), "arguments": to_json(function.get("arguments") or {})}
            made["tool_calls"].append({"id": waiting[-1], "type": "function", "function": about})
        if made["role"] == "tool":
            made["tool_call_id"] = waiting.popleft() if waiting else "call"
        yield made


def _more(body: Body) -> Body:
    made: Body = {}
    think: Any = body.get("think")
    if isinstance(think, bool):
        made["enable_thinking"] = think
    elif think is not None:
        made["reasoning_effort"] = think
    wanted = body.get("format")
    if wanted == "json":
        made["response_format"] = {"type": "json_object"}
    elif isinstance(wanted, Mapping):
        made["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted}}
    elif wanted:
        raise field_error("format", '"json" or a schema is wanted')
    if tools := listed(body.get("tools"), "tools"):
        made["tools"] = tools
    return made
