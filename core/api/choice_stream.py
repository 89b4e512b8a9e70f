"""One answer as the pieces of a stream: what has come since the last look."""

from __future__ import annotations

from typing import Any

from core.api.generation import Choice
from core.api.logprob_bodies import length_of
from core.api.responses import ResponseWriter
from core.engine.thought import Parts


class ChoiceStream:
    """Remembers what was sent of one choice."""

    def __init__(self, index: int, choice: Choice, reply: ResponseWriter) -> None:
        self._index, self._choice, self._reply = index, choice, reply
        self._sent = Parts()
        self._num_tokens, self._text_offset = 0, 0
        self.has_ended = False

    def pieces(self) -> list[dict[str, Any]]:
        """What can be sent now. An answer that failed has no end."""
        if self.has_ended:
            return []
        parts, is_done = self._choice.parts()
        pieces = []
        if thought := parts.thought[len(self._sent.thought) :]:
            pieces.append(self._reply.thought(self._index, thought))
        if text := parts.answer[len(self._sent.answer) :]:
            pieces.append(self._reply.piece(self._index, text, self._logprobs()))
        self._sent = parts
        if is_done and self._choice.answer.error is None:
            if (rest := self._logprobs()) is not None:
                pieces.append(self._reply.piece(self._index, "", rest))
            pieces.append(self._reply.end(self._index, self._choice.answer.reason))
            self.has_ended = True
        return pieces

    def _logprobs(self) -> dict[str, Any] | None:
        """Of the tokens that came since the last piece; None where there are none."""
        tokens = self._choice.tokens()
        news, begin = tokens[self._num_tokens :], self._text_offset
        self._num_tokens = len(tokens)
        if not news:
            return None
        self._text_offset += length_of(news)
        return self._reply.logprobs(news, begin)
