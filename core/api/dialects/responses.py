"""Answers as OpenAI's Responses API writes them, whole and as events; its errors.

https://platform.openai.com/docs/api-reference/responses-streaming says which events there are.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from core.api.dialects.dialect import SSE, Body, Dialect, event
from core.api.dialects.responses_request import chat_body
from core.api.errors import body_of
from core.api.generation import Usage

# Said again in the answer, as they came.
ECHOED: dict[str, Any] = {
    "instructions": None, "max_output_tokens": None, "metadata": {}, "parallel_tool_calls": True, "reasoning": {},
    "temperature": None, "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_p": None,
    "truncation": "disabled",
}  # fmt: skip
PREFIXES = {"reasoning": "rs_", "message": "msg_", "function_call": "fc_"}
PARTS: dict[str, Body] = {
    "reasoning": {"type": "reasoning_text", "text": ""},
    "message": {"type": "output_text", "text": "", "annotations": [], "logprobs": []},
}


class ResponsesExchange:
    """One request for a response, whose output is a thought, a message and calls of functions, in this order."""

    def __init__(self) -> None:
        self._id = f"resp_{secrets.token_hex(12)}"
        self._created_s = int(time.time())
        self._model = ""
        self._said: Body = {}
        self._output: list[Body] = []
        # The item that is being written: its kind, or the number of a call.
        self._open: str | int | None = None
        # Its text or arguments so far; put together once, at its end.
        self._written: list[str] = []
        self._num_events = 0
        self._finish: str | None = None

    def translate(self, body: Body) -> Body:
        made = chat_body(body)
        self._model = str(body.get("model") or "")
        self._said = {name: body[name] if body.get(name) is not None else usual for name, usual in ECHOED.items()}
        return made

    def whole(self, answer: Body) -> Body:
        choice, self._model = answer["choices"][0], answer.get("model") or self._model
        message = choice["message"]
        for kind, text in (("reasoning", message.get("reasoning_content")), ("message", message.get("content"))):
            if text:
                self._output.append(_item(kind) | {"content": [PARTS[kind] | {"text": text}]})
        for call in message.get("tool_calls") or ():
            self._output.append(_call_item(call["id"], call["function"]["name"], call["function"]["arguments"]))
        self._finish = choice["finish_reason"]
        return self._response(answer["usage"])

    def begin(self, usage: Usage) -> Iterable[str]:
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, response=self._response(None))

    def pieces(self, piece: Body) -> Iterable[str]:
        self._model = piece.get("model") or self._model
        for choice in piece["choices"]:
            delta = choice["delta"]
            if thought := delta.get("reasoning_content"):
                yield from self._say("reasoning", thought)
            if text := delta.get("content"):
                yield from self._say("message", text)
            for call in delta.get("tool_calls") or ():
                yield from self._call(call)
            self._finish = choice["finish_reason"] or self._finish
        if piece.get("usage") is not None:
            yield from self._close()
            name = "response.incomplete" if self._finish == "length" else "response.completed"
            yield self._event(name, response=self._response(piece["usage"]))

    def end(self) -> Iterable[str]:
        return ()

    def _say(self, kind: str, text: str) -> Iterator[str]:
        if self._open != kind:
            yield from self._begin(kind, _item(kind) | {"status": "in_progress"})
            self._item["content"] = [dict(PARTS[kind])]
            yield self._item_event("content_part.added", content_index=0, part=PARTS[kind])
        self._written.append(text)
        extra: Body = {"logprobs": []} if kind == "message" else {}
        yield self._item_event(f"{PARTS[kind]['type']}.delta", content_index=0, delta=text, **extra)

    def _call(self, call: Body) -> Iterator[str]:
        function = call.get("function") or {}
        if self._open != call["index"] or self._open is None:
            item = _call_item(call.get("id"), function.get("name"), "") | {"status": "in_progress"}
            yield from self._begin(call["index"], item)
        if arguments := function.get("arguments"):
            self._written.append(arguments)
            yield self._item_event("function_call_arguments.delta", delta=arguments)

    def _begin(self, kind: str | int, item: Body) -> Iterator[str]:
        yield from self._close()
        self._open, self._written = kind, []
        self._output.append(item)
        yield self._event("response.output_item.added", output_index=len(self._output) - 1, item=dict(item))

    def _close(self) -> Iterator[str]:
        if self._open is None:
            return
        item = self._item
        written = "".join(self._written)
        if item["type"] == "function_call":
            item["arguments"] = written
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield self._item_event("function_call_arguments.done", **done)
        else:
            part = item["content"][0]
            part["text"] = written
            extra: Body = {"logprobs": []} if item["type"] == "message" else {}
            yield self._item_event(f"{part['type']}.done", content_index=0, text=part["text"], **extra)
            yield self._item_event("content_part.done", content_index=0, part=part)
        item["status"] = "completed"
        yield self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)
        self._open = None

    @property
    def _item(self) -> Body:
        return self._output[-1]

    def _item_event(self, kind: str, /, **about: Any) -> str:
        return self._event(f"response.{kind}", output_index=len(self._output) - 1, item_id=self._item["id"], **about)

    def _event(self, kind: str, /, **about: Any) -> str:
        self._num_events += 1
        return event({"type": kind, "sequence_number": self._num_events - 1, **about}, kind)

    def _response(self, usage: Body | None) -> Body:
        is_cut = self._finish == "length"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created_s,
            "model": self._model,
            "status": "in_progress" if usage is None else "incomplete" if is_cut else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut and usage is not None else None,
            "output": [] if usage is None else self._output,
            "usage": None if usage is None else usage_of(usage),
            "previous_response_id": None,
            "store": False,
            "background": False,
            **self._said,
        }


def _item(kind: str) -> Body:
    about: Body = {"id": PREFIXES[kind] + secrets.token_hex(12), "type": kind, "status": "completed", "content": []}
    more: Body = {"summary": []} if kind == "reasoning" else {"role": "assistant"}
    return about | more


def _call_item(call_id: object, name: object, arguments: str) -> Body:
    kind = "function_call"
    return {"id": PREFIXES[kind] + secrets.token_hex(12), "type": kind, "status": "completed", "call_id": call_id,
            "name": name, "arguments": arguments}  # fmt: skip


def usage_of(usage: Body) -> Body:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": usage["total_tokens"],
    }


def _error_frames(body: Body, is_ending: bool) -> Iterable[str]:
    return (event({**body["error"], "type": "error", "sequence_number": 0, "error": body["error"]}, "error"),)


RESPONSES = Dialect(SSE, ": waiting\n\n", partial(body_of, prompt_field="input"), _error_frames)
