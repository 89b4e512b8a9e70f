"""Answers as Ollama writes them, whole and as lines of JSON; its errors.

https://github.com/ollama/ollama/blob/main/docs/api.md says what they hold. Durations are what passed here, in
nanoseconds; of a whole answer the reading of the prompt is not told apart.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

from core.api.dialects.dialect import Body, Dialect
from core.api.dialects.ollama_request import chat_body, generate_body, lets_go, name_of
from core.api.dialects.reading import arguments_of
from core.api.errors import body_of
from core.api.generation import Usage
from core.api.json_text import to_json
from core.common.errors import DeckError

Kind = Literal["chat", "generate"]
BODIES = {"chat": chat_body, "generate": generate_body}


class OllamaExchange:
    """One request of /api/chat or /api/generate. A raw one is answered by a completion, which has no messages."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self.model: str | None = None
        # Whether the model is to be unloaded afterwards.
        self.lets_go = False
        self._began_ns = time.monotonic_ns()
        self._first_ns: int | None = None
        self._finish = "stop"
        # The calls of tools by their numbers: they go out whole.
        self._calls: dict[int, Body] = {}

    def translate(self, body: Body) -> Body:
        self.model, self.lets_go = name_of(body), lets_go(body)
        return BODIES[self._kind](body)

    def whole(self, answer: Body) -> Body:
        choice = answer["choices"][0]
        message = choice.get("message") or {"content": choice["text"]}
        self._finish = choice["finish_reason"]
        calls = {place: call["function"] for place, call in enumerate(message.get("tool_calls") or ())}
        said = self._said(message.get("content") or "", message.get("reasoning_content") or "", calls)
        return said | _logprobs(choice) | self._last(answer["usage"])

    def begin(self, usage: Usage) -> Iterable[str]:
        return ()

    def pieces(self, piece: Body) -> Iterable[str]:
        for choice in piece["choices"]:
            delta = choice["delta"] if "delta" in choice else {"content": choice["text"]}
            for call in delta.get("tool_calls") or ():
                self._gather(call)
            text, thought = delta.get("content") or "", delta.get("reasoning_content") or ""
            if text or thought or _logprobs(choice):
                self._first_ns = self._first_ns or time.monotonic_ns()
                yield line(self._said(text, thought) | _logprobs(choice) | {"done": False})
            self._finish = choice["finish_reason"] or self._finish
        if piece.get("usage") is not None:
            if self._calls:
                yield line(self._said("", "", self._calls) | {"done": False})
            yield line(self._said("", "") | self._last(piece["usage"]))

    def end(self) -> Iterable[str]:
        return ()

    def loaded(self) -> Body:
        """The answer to a request that only wanted the model to be there, or to be there no longer."""
        return self._said("", "") | {"done": True, "done_reason": "unload" if self.lets_go else "load"}

    def _gather(self, call: Body) -> None:
        known = self._calls.setdefault(call["index"], {"name": "", "arguments": ""})
        for name, part in (call.get("function") or {}).items():
            if name in known and part:
                known[name] += part

    def _said(self, text: str, thought: str, calls: dict[int, Body] | None = None) -> Body:
        head = {"model": self.model or "", "created_at": now()}
        thinking = {"thinking": thought} if thought else {}
        if self._kind != "chat":
            return head | {"response": text} | thinking
        made = [{"function": _function(one)} for one in (calls or {}).values()]
        message = {"role": "assistant", "content": text} | thinking | ({"tool_calls": made} if made else {})
        return head | {"message": message}

    def _last(self, usage: Body) -> Body:
        end_ns = time.monotonic_ns()
        first_ns = self._first_ns or self._began_ns
        return {
            "done": True,
            "done_reason": "length" if self._finish == "length" else "stop",
            "total_duration": end_ns - self._began_ns,
            "load_duration": 0,
            "prompt_eval_count": usage["prompt_tokens"],
            "prompt_eval_duration": first_ns - self._began_ns,
            "eval_count": usage["completion_tokens"],
            "eval_duration": max(1, end_ns - first_ns),
        }


def _logprobs(choice: Body) -> Body:
    """Ollama lists them as OpenAI does, where they were asked for."""
    found = choice.get("logprobs")
    return {"logprobs": found["content"]} if found and found.get("content") else {}


def _function(call: Body) -> Body:
    return {"name": call["name"], "arguments": arguments_of(call)}


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def line(data: Body) -> str:
    return to_json(data) + "\n"


def error_body(error: DeckError, language: str) -> Body:
    return {"error": body_of(error, language)["error"]["message"]}


# Its clients read every line as JSON: there is none to skip.
OLLAMA = Dialect("application/x-ndjson", "", error_body, lambda body, is_ending: (line(body),))
