"""How an API speaks on the wire: its errors, its streams, and one request with its answer.

Requests of other APIs become bodies of our chat completions; our answers, whole or in OpenAI's pieces, become theirs.
So what a chat completion learns, the others have with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from core.api.errors import body_of
from core.api.generation import Usage
from core.api.json_text import to_json
from core.common.errors import DeckError

Body = dict[str, Any]
DONE = "data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Dialect:
    """What is the same for all requests of an API.

    `error_body` is an error as a whole answer, in the reader's language; `error_frames` are how it ends a stream that
    has begun, where the second value says whether the process ends. `waiting` is what clients skip, "" where they skip
    nothing.
    """

    stream_type: str
    waiting: str
    error_body: Callable[[DeckError, str], Body]
    error_frames: Callable[[Body, bool], Iterable[str]]


class Exchange(Protocol):
    """One request and its answer. `translate` comes first, in a thread; then `whole`, or the others in their order."""

    def translate(self, body: Body) -> Body:
        """The body of our own kind that asks for the same. Raises ApiError."""
        ...

    def whole(self, answer: Body) -> Body: ...

    def begin(self, usage: Usage) -> Iterable[str]:
        """What a stream says before all pieces. The prompt's tokens are 0 where it was not read yet."""
        ...

    def pieces(self, piece: Body) -> Iterable[str]: ...

    def end(self) -> Iterable[str]: ...


class OpenAiExchange:
    """Nothing to translate."""

    def translate(self, body: Body) -> Body:
        return body

    def whole(self, answer: Body) -> Body:
        return answer

    def begin(self, usage: Usage) -> Iterable[str]:
        return ()

    def pieces(self, piece: Body) -> Iterable[str]:
        return (event(piece),)

    def end(self) -> Iterable[str]:
        return (DONE,)


def event(data: Body, name: str = "") -> str:
    """A server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {to_json(data)}\n\n"


def _error_frames(body: Body, is_ending: bool) -> Iterable[str]:
    return (event(body), DONE) if is_ending else (event(body),)


SSE = "text/event-stream; charset=utf-8"
OPENAI = Dialect(SSE, ": waiting\n\n", body_of, _error_frames)
OPENAI_TEXT = Dialect(SSE, ": waiting\n\n", partial(body_of, prompt_field="prompt"), _error_frames)
