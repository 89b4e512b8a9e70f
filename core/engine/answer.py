"""One answer, which grows while the engine writes it and outlives the page that asked for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from core.common.errors import DeckError
from core.engine.protocol import (
    AnswerStats,
    Event,
    Failed,
    Finished,
    Paused,
    PromptScored,
    PromptStarted,
    Reason,
    TextChunk,
    TokenInfo,
)

log = logging.getLogger(__name__)
Phase = Literal["queued", "reading", "writing", "done"]


class Answer:
    """Every attribute may be read from any thread at any time.

    `phase` goes queued -> reading (the prompt) -> writing -> done. `reason` says why the answer ended; `error` is set
    where the reason is "failed". What was written stays in `text` whatever happens.
    """

    def __init__(self, request: int, cancel: Callable[[int], None]) -> None:
        self.request = request
        self.phase: Phase = "queued"
        self.text = ""
        # Whether it waits for room in the cache, which others have.
        self.is_paused = False
        self.num_tokens = 0
        self.prompt_tokens = 0
        self.reason: Reason | None = None
        # The stop string that ended it; "" where something else did.
        self.stop = ""
        self.error: DeckError | None = None
        self.stats: AnswerStats | None = None
        # With log-probabilities, where the request asks for them: of the answer, and of the prompt from its first on.
        self.tokens: tuple[TokenInfo, ...] = ()
        self.prompt_scores: tuple[TokenInfo, ...] = ()
        # The folder of the LoRA adapter that it is written with.
        self.adapter: Path | None = None
        # False where a client of the API asked: pages need not follow such an answer.
        self.is_for_page = True
        self._cancel = cancel
        self._changed = threading.Condition()
        self._listeners: list[Callable[[], None]] = []

    @property
    def is_running(self) -> bool:
        return self.phase != "done"

    def cancel(self) -> None:
        """Ask the engine to stop within one token; the answer ends with reason "cancelled"."""
        if self.is_running:
            self._cancel(self.request)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; False when `timeout_s` passed before it."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.is_running, timeout_s)

    def wait_for_text(self, num_chars: int, timeout_s: float | None = None) -> bool:
        """Wait until `text` has more than `num_chars` characters or the answer ended; False on time-out."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.text) > num_chars or not self.is_running, timeout_s)

    def add_listener(self, call: Callable[[], None]) -> None:
        """Call `call` now and after every change, in the thread that brings the change. `call` must not wait."""
        with self._changed:
            self._listeners.append(call)
            call()

    def apply(self, event: Event) -> None:
        """Take in an event of this answer. Events after its end are ignored."""
        with self._changed:
            if not self.is_running:
                return
            match event:
                case PromptStarted():
                    self.phase, self.prompt_tokens = "reading", event.prompt_tokens
                case TextChunk():
                    self.phase, self.text, self.num_tokens = "writing", self.text + event.text, event.num_tokens
                    if event.tokens:
                        self.tokens += event.tokens
                case Paused():
                    self.is_paused = event.is_paused
                case PromptScored():
                    self.prompt_scores += event.tokens
                case Finished():
                    self.reason, self.stats, self.stop, self.phase = event.reason, event.stats, event.stop, "done"
                    self.is_paused = False
                case Failed():
                    self.reason, self.error, self.phase = "failed", event.error, "done"
                    self.is_paused = False
            self._changed.notify_all()
            for call in self._listeners:
                try:
                    call()
                except Exception:  # A listener's fault is not to reach the others and the engine's thread.
                    log.exception("a listener of an answer failed")
