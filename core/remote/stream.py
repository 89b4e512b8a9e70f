"""One answer out of a server's events: its words up to a stop string, its tokens, why it ended.

Nothing that a server sends is trusted: types are checked, and nothing grows without end.
"""

from __future__ import annotations

import time
from typing import Any

from core.common.errors import EngineError
from core.common.values import is_whole, printable
from core.engine.detokenize import StopFilter
from core.engine.protocol import AnswerStats, Reason
from core.engine.sampling_params import Sampling
from core.engine.thought import ThoughtRules
from core.engine.thought_formats import THINK
from core.remote.http import message_of

# No tokenizer's token is longer, but for a few of blanks.
MAX_TOKEN_CHARS = 64
MAX_TOKENS = 1_000_000_000


class AnswerStream:
    """The answer as it comes. `reason` is None until the server has said why it ended, or a stop string came."""

    def __init__(
        self,
        server: str,
        sampling: Sampling,
        prompt_tokens: int,
        is_clipped: bool,
        thought: ThoughtRules | None = None,
        continues: bool = False,
    ) -> None:
        """`prompt_tokens` is our own count. `is_clipped`: fewer tokens were asked for than wanted, so that they fit.

        Thoughts that the server tells apart come between the marks of THINK; without `thought` they are left out.
        `continues`: what comes goes on from the last word. A server may take such an answer for a thought without end.
        """
        self._server, self._sampling, self._is_clipped = server, sampling, is_clipped
        self._filter, self._num_chars = StopFilter(sampling.stop), 0
        self._began_s = time.monotonic()
        self._first_s: float | None = None
        self.prompt_tokens, self.reused_tokens, self.num_tokens = prompt_tokens, 0, 0
        self.reason: Reason | None = None
        # The stop string that came, here or as the server tells.
        self.stop = ""
        self._thought = thought
        # Whether the text so far ends inside a thought that the server tells apart.
        self._is_thinking = False
        # Whether a thought may begin: not after an answer, or a mark would stand in the midst of it.
        self._may_think = thought is not None
        self._is_answer = continues and not (thought is not None and thought.is_open)

    def push(self, event: Any) -> str:
        """The further text that is certain with `event`. Raises EngineError for an error that the server reports."""
        if not isinstance(event, dict):
            raise EngineError("remote_garbled", server=self._server)
        if event.get("error"):
            raise EngineError("remote_error", server=self._server, why=message_of(event) or "-")
        thought, text, finish = self._choice(event)
        if self._is_answer:
            thought, text = "", thought + text
        if thought or text:
            self._first_s = self._first_s or time.monotonic()
            self.num_tokens += 1
            self._num_chars += len(thought) + len(text)
            if self._num_chars > MAX_TOKEN_CHARS * (self._sampling.max_new_tokens + 64):
                raise EngineError("remote_too_much", server=self._server)
        self._count(event.get("usage"))
        certain = self._marked(printable(thought), bool(text)) + self._filter.push(printable(text))
        if self._filter.stopped:
            self.reason, self.stop = "stop", self._filter.stop
        elif finish is not None:
            self.reason = self._reason(finish, event)
            return certain + self.flush()
        return certain

    def _marked(self, thought: str, has_text: bool) -> str:
        """A piece of a thought with the marks around all of it."""
        told = ""
        if thought and self._may_think and self._thought is not None:
            if not self._is_thinking and not self._thought.is_open:
                told = f"{THINK.open[0]}\n"
            self._is_thinking = True
            told += thought
        if has_text:
            told += THINK.closing if self._is_thinking else ""
            self._is_thinking = self._may_think = False
        return told

    def flush(self) -> str:
        """What was held back because it might have become a stop string."""
        return self._filter.flush()

    def stats(self) -> AnswerStats:
        now_s = time.monotonic()
        first_s = self._first_s or now_s
        return AnswerStats(
            prompt_tokens=self.prompt_tokens,
            reused_tokens=self.reused_tokens,
            num_tokens=self.num_tokens,
            queued_s=0.0,
            prefill_s=first_s - self._began_s,
            decode_s=now_s - first_s,
            seed=self._sampling.seed or 0,
        )

    def _choice(self, event: dict[str, Any]) -> tuple[str, str, str | None]:
        """The thought, the text and the finish reason that an event holds; the last one, with the usage, holds none."""
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else {}
        if not isinstance(choice, dict):
            raise EngineError("remote_garbled", server=self._server)
        delta = choice.get("delta")
        told = delta if isinstance(delta, dict) else {}
        text = told.get("content") if isinstance(delta, dict) else choice.get("text")
        # DeepSeek's name and vLLM's newer one; some servers send both.
        thought = told.get("reasoning_content") or told.get("reasoning")
        if isinstance(text, list):
            thought, text = _parts(text)
        finish = choice.get("finish_reason")
        return (
            thought if isinstance(thought, str) else "",
            text if isinstance(text, str) else "",
            finish if isinstance(finish, str) and finish else None,
        )

    def _reason(self, finish: str, event: dict[str, Any]) -> Reason:
        if finish == "length":
            return "context" if self._is_clipped else "length"
        # vLLM names the stop string that it found.
        stop = event["choices"][0].get("stop_reason")
        self.stop = printable(stop) if isinstance(stop, str) else ""
        return "stop" if self.stop else "end"

    def _count(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        self.prompt_tokens = _whole(usage.get("prompt_tokens"), self.prompt_tokens)
        self.num_tokens = _whole(usage.get("completion_tokens"), self.num_tokens)
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict):
            self.reused_tokens = _whole(details.get("cached_tokens"), self.reused_tokens)


def _parts(parts: list[Any]) -> tuple[str, str]:
    """The thought and the text of Mistral's content in parts."""
    found = {"thinking": "", "text": ""}
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("thinking", "text"):
            inner = part.get(kind)
            pieces = inner if isinstance(inner, list) else [{"text": inner}]
            found[kind] += "".join(
                one["text"] for one in pieces if isinstance(one, dict) and isinstance(one.get("text"), str)
            )
    return found["thinking"], found["text"]


def _whole(value: Any, otherwise: int) -> int:
    return value if is_whole(value) and 0 <= value <= MAX_TOKENS else otherwise
