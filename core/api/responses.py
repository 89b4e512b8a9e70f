"""Answers as OpenAI writes them, whole and in pieces."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from core.api.generation import Choice, Usage
from core.api.logprob_bodies import chat_logprobs, completion_logprobs
from core.engine.protocol import TokenInfo

OBJECTS = {"chat": "chat.completion", "completion": "text_completion"}
PREFIXES = {"chat": "chatcmpl-", "completion": "cmpl-"}


@dataclass(frozen=True, slots=True)
class ResponseWriter:
    """Writes one response in OpenAI's form, whole or as the pieces of a stream. All pieces share id, model and time."""

    kind: Literal["chat", "completion"]
    model: str
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created_s: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        written = [self._choice(index, choice) for index, choice in enumerate(choices)]
        return self._head(OBJECTS[self.kind]) | {"choices": written, "usage": usage_body(usage)}

    def logprobs(self, tokens: Sequence[TokenInfo], begin: int = 0) -> dict[str, Any]:
        """`begin`: where the first token's text begins in the text of a completion."""
        return chat_logprobs(tokens) if self.kind == "chat" else completion_logprobs(tokens, begin)

    def opening(self, index: int) -> dict[str, Any] | None:
        """What a chat's stream says before the first word of a choice."""
        return self._piece(index, {"role": "assistant", "content": ""}) if self.kind == "chat" else None

    def piece(self, index: int, text: str, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._piece(index, {"content": text}, text, logprobs=logprobs)

    def thought(self, index: int, text: str) -> dict[str, Any]:
        """A piece of what the model thinks before it answers."""
        return self._piece(index, _thought(text))

    def call(self, index: int, place: int, id: str, name: str) -> dict[str, Any]:
        """The beginning of the call of a tool, which `arguments` follow."""
        function = {"name": name, "arguments": ""}
        return self._piece(
            index, {"tool_calls": [{"index": place, "id": id, "type": "function", "function": function}]}
        )

    def arguments(self, index: int, place: int, text: str) -> dict[str, Any]:
        return self._piece(index, {"tool_calls": [{"index": place, "function": {"arguments": text}}]})

    def end(self, index: int, choice: Choice, has_calls: bool = False) -> dict[str, Any]:
        piece = self._piece(index, {})
        piece["choices"][0] |= choice.finish(has_calls)
        return piece

    def usage(self, usage: Usage) -> dict[str, Any]:
        return self._head(self._piece_object) | {"choices": [], "usage": usage_body(usage)}

    @property
    def _piece_object(self) -> str:
        return "chat.completion.chunk" if self.kind == "chat" else OBJECTS[self.kind]

    def _piece(
        self,
        index: int,
        delta: dict[str, Any],
        text: str = "",
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        content = {"delta": delta} if self.kind == "chat" else {"text": text}
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": None}
        return self._head(self._piece_object) | {"choices": [choice]}

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        parts, calls, _ = choice.message()
        message: dict[str, Any] = {"role": "assistant", "content": parts.answer}
        if parts.thought:
            message |= _thought(parts.thought)
        if calls:
            message |= {
                "content": parts.answer or None,
                "tool_calls": [
                    {"id": choice.call_id(place), "type": "function",
                     "function": {"name": call.name, "arguments": call.arguments}}
                    for place, call in enumerate(calls)
                ],
            }  # fmt: skip
        content = {"message": message} if self.kind == "chat" else {"text": parts.answer}
        logprobs = self.logprobs(choice.tokens()) if choice.tells_logprobs else None
        return {
            "index": index,
            **content,
            "logprobs": logprobs,
            **choice.finish(bool(calls)),
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": PREFIXES[self.kind] + self.id, "object": kind, "created": self.created_s, "model": self.model}


def _thought(text: str) -> dict[str, str]:
    """A thought by both of its names: DeepSeek's, which most clients read, and vLLM's newer one."""
    return {"reasoning_content": text, "reasoning": text}


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }
