"""One answer as a job that outlives the page that asked for it; knows nothing of models and pipes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Literal

from core.common.errors import DeckError
from core.engine.protocol import AnswerStats, Began, Event, Failed, Finished, Reason, Text

log = logging.getLogger(__name__)
Phase = Literal["queued", "reading", "writing", "done"]


class Answer:
    """Text that grows while the engine writes it. Every attribute may be read from any thread at any time.

    `phase` goes queued -> reading (the prompt) -> writing -> done; `reason` says why it ended, and `error` what went
    wrong when the reason is "failed". What was written stays in `text` whatever happens.
    """

    def __init__(self, request: int, cancel: Callable[[int], None]) -> None:
        self.request = request
        self.phase: Phase = "queued"
        self.text = ""
        self.num_tokens = 0
        self.prompt_tokens = 0
        self.reason: Reason | None = None
        self.error: DeckError | None = None
        self.stats: AnswerStats | None = None
        # Not where somebody else asked, such as a client of the API: then pages need not follow it.
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

    def listen(self, call: Callable[[], None]) -> None:
        """Call `call` now and after every change, in the thread that brings it, which must not be held up."""
        with self._changed:
            self._listeners.append(call)
            call()

    def take(self, event: Event) -> None:
        """Take in what the engine said about this answer; what comes after its end is ignored."""
        with self._changed:
            if not self.is_running:
                return
            match event:
                case Began():
                    self.phase, self.prompt_tokens = "reading", event.prompt_tokens
                case Text():
                    self.phase, self.text, self.num_tokens = (
                        "writing",
                        self.text + event.text,
                        event.num_tokens,
                    )
                case Finished():
                    self.reason, self.stats, self.phase = event.reason, event.stats, "done"
                case Failed():
                    self.reason, self.error, self.phase = "failed", event.error, "done"
            self._changed.notify_all()
            for call in self._listeners:
                try:
                    call()
                except Exception:  # What one of them cannot take, the others and the engine's thread can.
                    log.exception("somebody who listens to an answer")
