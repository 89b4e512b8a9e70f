"""What this machine's engine and one on another server have in common: a state to wait for, and the running answers."""

from __future__ import annotations

import itertools
import threading
import time

from core.engine.answer import Answer
from core.engine.protocol import EngineState


class EngineBase:
    """The state and the answers change under `_lock`, and are read without it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        # Notified whenever `state` changes.
        self.changed = threading.Condition(self._lock)
        self._state = EngineState()
        # Never changed, always replaced: a reader needs no lock.
        self._answers: dict[int, Answer] = {}
        self._numbers = itertools.count(1)
        # When an answer began or ended last, by the monotonic clock: however short, it was a use.
        self.used_s = time.monotonic()

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def running_answers(self) -> list[Answer]:
        return [answer for answer in self._answers.values() if answer.is_running]

    def wait_while_loading(self, timeout_s: float | None = None) -> EngineState:
        """See Engine.wait_while_loading."""
        with self.changed:
            self.changed.wait_for(lambda: self._state.phase != "loading", timeout_s)
            return self._state

    # The caller of these holds the lock -----------------------------------------------------------------------------

    def _set(self, state: EngineState) -> None:
        self._state = state
        self.changed.notify_all()

    def _keep(self, answer: Answer) -> None:
        self._answers = self._answers | {answer.request: answer}
        self.used_s = time.monotonic()

    def _forget(self, request: int) -> None:
        self._answers = {number: answer for number, answer in self._answers.items() if number != request}
        self.used_s = time.monotonic()

    def _forget_all(self) -> list[Answer]:
        answers, self._answers = self._answers, {}
        return list(answers.values())
