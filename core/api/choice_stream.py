"""One answer as the pieces of a stream: what has come since the last look."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from core.api.generation import Choice
from core.api.logprob_bodies import length_of
from core.api.responses import ResponseWriter
from core.chat.tools.calls import ToolCall
from core.engine.thought import Parts


class ChoiceStream:
    """Remembers what was sent of one choice."""

    def __init__(self, index: int, choice: Choice, reply: ResponseWriter) -> None:
        self._index, self._choice, self._reply = index, choice, reply
        self._sent = Parts()
        self._calls: tuple[ToolCall, ...] = ()
        self._num_tokens, self._text_offset = 0, 0
        self.has_ended = False

    def pieces(self) -> list[dict[str, Any]]:
        """What can be sent now. An answer that failed has no end."""
        if self.has_ended:
            return []
        parts, calls, is_done = self._choice.message()
        pieces = []
        if thought := parts.thought[len(self._sent.thought) :]:
            pieces.append(self._reply.thought(self._index, thought))
        if text := parts.answer[len(self._sent.answer) :]:
            pieces.append(self._reply.piece(self._index, text, self._logprobs()))
        for place, call in enumerate(calls):
            pieces += self._call_pieces(place, call)
        self._sent, self._calls = parts, calls
        if is_done and self._choice.answer.error is None:
            if (rest := self._logprobs()) is not None:
                pieces.append(self._reply.piece(self._index, "", rest))
            pieces.append(self._reply.end(self._index, self._choice, bool(calls)))
            self.has_ended = True
        return pieces

    def _call_pieces(self, place: int, call: ToolCall) -> Iterator[dict[str, Any]]:
        """The beginning of a call, then what its arguments have grown by."""
        sent = self._calls[place].arguments if place < len(self._calls) else ""
        if place >= len(self._calls):
            yield self._reply.call(self._index, place, self._choice.call_id(place), call.name)
        if news := call.arguments[len(sent) :]:
            yield self._reply.arguments(self._index, place, news)

    def _logprobs(self) -> dict[str, Any] | None:
        """Of the tokens that came since the last piece; None where there are none."""
        tokens = self._choice.tokens()
        news, begin = tokens[self._num_tokens :], self._text_offset
        self._num_tokens = len(tokens)
        if not news:
            return None
        self._text_offset += length_of(news)
        return self._reply.logprobs(news, begin)
