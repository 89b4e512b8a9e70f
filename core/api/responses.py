"""Answers as OpenAI writes them, whole and in pieces."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from core.api.generation import Choice, Usage
from core.api.logprob_bodies import chat_logprobs, completion_logprobs
from core.engine.protocol import Reason, TokenInfo

# A stop string and the model's own end are one thing for OpenAI, and so are a full context and the asked-for length.
FINISH: dict[Reason | None, str] = {"length": "length", "context": "length"}
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

    def end(self, index: int, reason: Reason | None) -> dict[str, Any]:
        return self._piece(index, {}, "", finish_of(reason))

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
        finish: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        content = {"delta": delta} if self.kind == "chat" else {"text": text}
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish}
        return self._head(self._piece_object) | {"choices": [choice]}

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        parts, _ = choice.parts()
        message = {"role": "assistant", "content": parts.answer, **(_thought(parts.thought) if parts.thought else {})}
        content = {"message": message} if self.kind == "chat" else {"text": parts.answer}
        logprobs = self.logprobs(choice.tokens()) if choice.tells_logprobs else None
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_of(choice.answer.reason)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": PREFIXES[self.kind] + self.id, "object": kind, "created": self.created_s, "model": self.model}


def _thought(text: str) -> dict[str, str]:
    """A thought by both of its names: DeepSeek's, which most clients read, and vLLM's newer one."""
    return {"reasoning_content": text, "reasoning": text}


def finish_of(reason: Reason | None) -> str:
    return FINISH.get(reason, "stop")


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }
