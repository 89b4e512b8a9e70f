"""Answers as Anthropic's Messages API writes them, whole and as events; its errors.

https://docs.anthropic.com/en/api/messages and /messages-streaming say what they hold.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from core.api.dialects.anthropic_request import chat_body
from core.api.dialects.dialect import SSE, Body, Dialect, event
from core.api.dialects.reading import arguments_of, listed
from core.api.errors import body_of, shape_of
from core.api.generation import Usage
from core.common.errors import DeckError

# Which its clients send with every request.
VERSION_HEADER = "anthropic-version"
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
}


class AnthropicExchange:
    """One request for a message. A stream has one block open at a time: a thought, then a text, then calls of tools."""

    def __init__(self) -> None:
        self._id = f"msg_{secrets.token_hex(12)}"
        self._model = ""
        self._hides_thoughts = False
        # The block that is open: its kind, or the number of a call; and how many there were.
        self._open: str | int | None = None
        self._num_blocks = 0
        self._finish: str | None = None
        # Those that the request named, and the one that ended the answer; a character has further ones of its own.
        self._stops: list[Any] = []
        self._stop: str | None = None

    def translate(self, body: Body) -> Body:
        made = chat_body(body)
        self._model = str(body.get("model") or "")
        self._stops = listed(body.get("stop_sequences"), "stop_sequences")
        thinking = body.get("thinking")
        self._hides_thoughts = isinstance(thinking, dict) and thinking.get("display") == "omitted"
        return made

    def whole(self, answer: Body) -> Body:
        choice = answer["choices"][0]
        self._note_stop(choice)
        return self._message(list(self._content(choice["message"])), choice["finish_reason"], answer["usage"])

    def begin(self, usage: Usage) -> Iterable[str]:
        told = {"prompt_tokens": usage.prompt, "completion_tokens": 0}
        yield event({"type": "message_start", "message": self._message([], None, told)}, "message_start")
        yield PING

    def pieces(self, piece: Body) -> Iterable[str]:
        for choice in piece["choices"]:
            delta = choice["delta"]
            if thought := delta.get("reasoning_content"):
                yield from self._block("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                if not self._hides_thoughts:
                    yield self._delta({"type": "thinking_delta", "thinking": thought})
            if text := delta.get("content"):
                yield from self._block("text", {"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": text})
            for call in delta.get("tool_calls") or ():
                yield from self._call(call)
            self._finish = choice["finish_reason"] or self._finish
            self._note_stop(choice)
        if piece.get("usage") is not None:
            yield from self._close()
            yield self._last(piece["usage"])

    def end(self) -> Iterable[str]:
        yield event({"type": "message_stop"}, "message_stop")

    def _call(self, call: Body) -> Iterator[str]:
        function = call.get("function") or {}
        if function.get("name"):
            started = {"type": "tool_use", "id": call.get("id"), "name": function["name"], "input": {}}
            yield from self._block(call["index"], started)
        if arguments := function.get("arguments"):
            yield self._delta({"type": "input_json_delta", "partial_json": arguments})

    def _block(self, kind: str | int, started: Body) -> Iterator[str]:
        """Open a block of this kind, unless that is what is open."""
        if self._open == kind and self._open is not None:
            return
        yield from self._close()
        self._open = kind
        about = {"type": "content_block_start", "index": self._num_blocks, "content_block": started}
        yield event(about, "content_block_start")

    def _close(self) -> Iterator[str]:
        if self._open is not None:
            yield event({"type": "content_block_stop", "index": self._num_blocks}, "content_block_stop")
            self._open, self._num_blocks = None, self._num_blocks + 1

    def _delta(self, delta: Body) -> str:
        return event({"type": "content_block_delta", "index": self._num_blocks, "delta": delta}, "content_block_delta")

    def _last(self, usage: Body) -> str:
        return event(
            {"type": "message_delta", "delta": self._end(self._finish), "usage": usage_of(usage)}, "message_delta"
        )

    def _note_stop(self, choice: Body) -> None:
        found = choice.get("stop_reason")
        self._stop = found if found in self._stops else self._stop

    def _end(self, finish: str | None) -> Body:
        if self._stop is not None and finish == "stop":
            return {"stop_reason": "stop_sequence", "stop_sequence": self._stop}
        return {"stop_reason": finish and STOP_REASONS.get(finish, "end_turn"), "stop_sequence": None}

    def _content(self, message: Body) -> Iterator[Body]:
        if thought := message.get("reasoning_content"):
            yield {"type": "thinking", "thinking": "" if self._hides_thoughts else thought, "signature": ""}
        if message.get("content"):
            yield {"type": "text", "text": message["content"]}
        for call in message.get("tool_calls") or ():
            function = call["function"]
            yield {"type": "tool_use", "id": call["id"], "name": function["name"], "input": arguments_of(function)}

    def _message(self, content: list[Body], finish: str | None, usage: Body) -> Body:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            **self._end(finish),
            "usage": usage_of(usage),
        }


def usage_of(usage: Body) -> Body:
    """Anthropic counts what was read from the cache apart."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage["completion_tokens"],
    }


def error_body(error: DeckError, language: str) -> Body:
    kind = ERROR_TYPES.get(shape_of(error).status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": body_of(error, language)["error"]["message"]}}


def model_list(found: Sequence[Body]) -> Body:
    """What OpenAI lists, as Anthropic does, in one page."""
    models = [
        {
            "type": "model",
            "id": one["id"],
            "display_name": one["id"],
            "created_at": datetime.fromtimestamp(one["created"], UTC).isoformat().replace("+00:00", "Z"),
        }
        for one in found
    ]
    ends = {"first_id": models[0]["id"], "last_id": models[-1]["id"]} if models else {"first_id": None, "last_id": None}
    return {"data": models, "has_more": False, **ends}


PING = event({"type": "ping"}, "ping")
ANTHROPIC = Dialect(SSE, PING, error_body, lambda body, is_ending: (event(body, "error"),))
