"""Writes answers into the history as they grow, whether or not a page looks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from core.chat.database import ChatStoreError
from core.chat.records import Thought
from core.chat.stats import VARIABLES, state_of, stats_of
from core.chat.store import ChatStore
from core.common.errors import DeckError
from core.engine.answer import Answer
from core.engine.thought import Parts

log = logging.getLogger(__name__)
# Answers are on disk within a second: half of that leaves time for a write that waits for another one.
FLUSH_INTERVAL_S = 0.5
# A full disk or a locked file may pass; the answer waits in memory meanwhile.
RETRY_S = 1.0
SHUTDOWN_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Written:
    """What a message says by now. `is_thinking`: its thought goes on."""

    text: str
    thought: Thought | None = None
    is_thinking: bool = False


def thought_of(parts: Parts, seconds: float | None = None) -> Thought | None:
    """The thought that a message keeps of an answer's parts; None where there is not even an empty one."""
    if not (parts.opening or parts.thought or parts.closing):
        return None
    return Thought(parts.thought, parts.opening, parts.closing, seconds)


class Recorder:
    """Follows answers, each in a thread of its own, which sleeps until a write is due or the answer ends.

    Read `answer` before the store: once the recorder has no answer any more, the store holds all of it.
    """

    def __init__(self, store: ChatStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._jobs: dict[int, _Job] = {}
        self._closing = threading.Event()

    def follow(
        self,
        message: int,
        answer: Answer,
        model: str = "",
        parts_of: Callable[[str, bool], Parts] = lambda text, is_done: Parts(answer=text),
        thought_s: float = 0.0,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """Write `answer` as `message`, which the store began.

        `parts_of` makes the message's parts of the answer's text, and of whether that is all of it. `thought_s` is how
        long was thought before, where the message goes on. `variables` are what the template was given, which is kept
        so that the answer can go on from the same prompt.
        """
        job = _Job(self._store, message, answer, model, parts_of, thought_s, variables, self._closing, self._forget)
        with self._lock:
            self._jobs[message] = job
        try:
            job.thread.start()
        except RuntimeError:  # No more threads: whoever asks hears of it, and nobody waits for the job.
            self._forget(job)
            raise

    def answer(self, message: int) -> Answer | None:
        """The answer that is being written as `message`."""
        job = self._jobs.get(message)
        return None if job is None else job.answer

    def written(self, message: int) -> Written | None:
        """What `message` says right now, newer than the store; None where it is not being written."""
        job = self._jobs.get(message)
        return None if job is None else job.written()

    def problem(self, message: int) -> DeckError | None:
        """Why the answer cannot be written to the disk now. The recorder tries again until it can."""
        job = self._jobs.get(message)
        return None if job is None else job.problem

    def stop(self, message: int) -> None:
        """Cancel the answer that is being written as `message`, if any."""
        answer = self.answer(message)
        if answer is not None:
            answer.cancel()

    def wait(self, message: int, timeout_s: float | None = None) -> bool:
        """Wait until `message` is written down to its end; False on time-out."""
        job = self._jobs.get(message)
        if job is not None:
            job.thread.join(timeout_s)
        return job is None or not job.thread.is_alive()

    def close(self) -> None:
        """Write every answer once more, as stopped where it has not ended."""
        self._closing.set()
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.answer.cancel()
        end_s = time.monotonic() + SHUTDOWN_TIMEOUT_S
        for job in jobs:
            job.thread.join(max(0.0, end_s - time.monotonic()))

    def _forget(self, job: _Job) -> None:
        with self._lock:
            # The same message may grow on already, in another job.
            if self._jobs.get(job.message) is job:
                del self._jobs[job.message]


class _Job:
    """One answer on its way to the disk."""

    def __init__(
        self,
        store: ChatStore,
        message: int,
        answer: Answer,
        model: str,
        parts_of: Callable[[str, bool], Parts],
        thought_s: float,
        variables: Mapping[str, Any] | None,
        closing: threading.Event,
        on_end: Callable[[_Job], None],
    ) -> None:
        self._store, self.message, self._model, self._variables = store, message, model, variables
        self.answer, self._parts_of, self._clock = answer, parts_of, _ThoughtClock(thought_s)
        self._closing, self._on_end = closing, on_end
        self._written: Written | None = None
        self.problem: DeckError | None = None
        self.thread = threading.Thread(target=self._run, name=f"recorder-{message}", daemon=True)

    def _run(self) -> None:
        try:
            while not self.answer.wait(FLUSH_INTERVAL_S) and not self._closing.is_set():
                if not self._try(self._grow):
                    return
            if self._closing.is_set():
                self.answer.wait(FLUSH_INTERVAL_S)
            while self._try(self._finish) and self.problem is not None and not self._closing.wait(RETRY_S):
                pass
        finally:
            self._on_end(self)

    def _try(self, write: Callable[[], None]) -> bool:
        """Run `write`. False once the message is gone, so that writing on makes no sense."""
        try:
            write()
        except ChatStoreError as error:
            if error.key == "message_gone":
                self.answer.cancel()
                return False
            if self.problem is None:
                log.error("an answer cannot be written to the history: %s", error)
            self.problem = error
        except Exception as error:  # The thread's edge: what is written later may go well.
            log.exception("an answer cannot be written to the history")
            self.problem = DeckError("record_fault", why=type(error).__name__)
        else:
            self.problem = None
        return True

    def written(self) -> Written:
        """The message by now: the answer as the chat shows it, or as it came where that fails."""
        is_running, text = self.answer.is_running, self.answer.text
        try:
            parts = self._parts_of(text, not is_running)
        except Exception:
            log.exception("an answer's text is kept as it came")
            parts = Parts(answer=text)
        is_thinking = bool(parts.opening or parts.thought) and is_running and not (parts.closing or parts.answer)
        # Where a template opens the thought, it begins with the first word.
        seconds = self._clock.read(is_thinking and bool(text))
        return Written(parts.answer, thought_of(parts, seconds), is_thinking)

    def _grow(self) -> None:
        now = self.written()
        if now != self._written:
            self._store.grow_answer(self.message, now.text, now.thought)
            self._written = now

    def _finish(self) -> None:
        now = self.written()
        state, stats = state_of(self.answer), stats_of(self.answer, self._model)
        if self._variables is not None:
            stats[VARIABLES] = dict(self._variables)
        self._store.finish_answer(self.message, now.text, state, stats, now.thought)


class _ThoughtClock:
    """How long an answer's thought has taken, to a few tenths of a second. Several threads read it."""

    def __init__(self, before_s: float) -> None:
        self._before_s = before_s
        self._began_s: float | None = None
        self._ended_s: float | None = None

    def read(self, is_thinking: bool) -> float:
        """Seconds up to now, or to the first look after the end."""
        now_s = time.monotonic()
        if is_thinking and self._began_s is None:
            self._began_s = now_s
        if not is_thinking and self._began_s is not None and self._ended_s is None:
            self._ended_s = now_s
        if self._began_s is None:
            return self._before_s
        return round(self._before_s + (self._ended_s or now_s) - self._began_s, 1)
