"""The one engine of this process: starts, feeds and ends the worker process; knows nothing of torch, chats and pages.

Everything here may be called from any thread.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from dataclasses import replace
from pathlib import Path

from core.engine.answer import Answer
from core.engine.messages import (
    Began,
    Cancel,
    EngineState,
    Event,
    Failed,
    Finished,
    Generate,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    Sampling,
    Text,
)
from core.engine.process import Worker, death_reason
from core.engine.spare import QUIET_S, Spare
from core.errors import DeckError, EngineError

log = logging.getLogger(__name__)


class Runner:
    """Loads one model at a time and answers with it. `state` is what pages show."""

    def __init__(self, worker_module: str = "core.engine.worker") -> None:
        self._worker_module = worker_module
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._state = EngineState()
        self._worker: Worker | None = None
        self._answers: dict[int, Answer] = {}
        self._numbers = itertools.count(1)
        self._asked_s = 0.0
        self._spare = Spare(self._start_spare, self._is_quiet)

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def running_answers(self) -> list[Answer]:
        """The answers that are queued or being written, oldest first."""
        with self._lock:
            return list(self._answers.values())

    @property
    def worker_pid(self) -> int | None:
        """The engine's process, by which NVML tells its memory from others'."""
        worker = self._worker
        return None if worker is None else worker.pid

    def load(
        self,
        folder: Path,
        context_tokens: int = 0,
        num_slots: int = 1,
        kernel: str | None = None,
        force: bool = False,
    ) -> None:
        """Begin to load the checkpoint in `folder`, in place of whatever is loaded; `state` tells how it goes.

        `context_tokens` 0 takes the model's own limit, up to what the engine takes by default. `kernel` None takes
        the fastest that fits; `force` loads on a GPU although the plan says that it does not fit.
        """
        with self._lock:
            self._asked_s = time.monotonic()
            self._end_worker(EngineError("answer_model_unloaded"))
            self._set(EngineState("loading", folder.name))
            self._worker = self._spare.take() or Worker(self._worker_module, self._take, self._worker_ended)
            self._worker.send(Load(folder, context_tokens, num_slots, kernel, force))

    def unload(self) -> None:
        """End the worker process: all of its memory comes back. Running answers keep what was written."""
        with self._lock:
            self._end_worker(EngineError("answer_model_unloaded"))
            self._set(EngineState())

    def keep_spare(self, quiet_s: float = QUIET_S) -> None:
        """From now on keep a worker waiting that has imported what a load needs, so that loads begin at once.

        It is started when nothing has loaded or answered for `quiet_s`.
        """
        self._spare.keep(quiet_s)

    def wait_for_spare(self, timeout_s: float) -> bool:
        """Wait until a worker waits with everything imported; False where there is none within `timeout_s`."""
        return self._spare.wait(timeout_s)

    def close(self) -> None:
        """End everything that was started. A later load still works, with a worker of its own."""
        self._spare.close()
        self.unload()

    def generate(self, prompt: str | tuple[int, ...], sampling: Sampling, continues: bool = False) -> Answer:
        """Begin to answer `prompt`; the answer waits its turn where the model is busy.

        `continues` where the prompt ends inside the answer, after whose last word the text goes on. Raises EngineError
        when no model is loaded.
        """
        with self._lock:
            if self._state.phase != "ready" or self._worker is None:
                raise EngineError("nothing_loaded")
            answer = Answer(next(self._numbers), self._cancel)
            self._answers[answer.request] = answer
            self._worker.send(Generate(answer.request, prompt, sampling, continues))
            return answer

    def wait_while_loading(self, timeout_s: float | None = None) -> EngineState:
        """Wait for the end of a load, at most `timeout_s`; the state as it then is."""
        with self._changed:
            self._changed.wait_for(lambda: self._state.phase != "loading", timeout_s)
            return self._state

    def _cancel(self, request: int) -> None:
        with self._lock:
            if self._worker is not None:
                self._worker.send(Cancel(request))

    def _start_spare(self) -> Worker:
        return Worker(self._worker_module, self._take, self._worker_ended, is_spare=True)

    def _is_quiet(self) -> bool:
        return self._state.phase != "loading" and not self._answers

    def _set(self, state: EngineState) -> None:
        self._state = state
        self._changed.notify_all()

    def _take(self, worker: Worker, event: Event) -> None:
        with self._lock:
            if worker is not self._worker:
                return
            match event:
                case LoadProgress():
                    self._set(replace(self._state, stage=event.stage, fraction=event.fraction))
                case Loaded():
                    took_s = time.monotonic() - self._asked_s
                    ready = EngineState(
                        "ready", event.facts.name, facts=event.facts, fraction=1.0, ready_after_s=took_s
                    )
                    self._set(ready)
                case LoadFailed():
                    log.error("load of %s failed: %s", self._state.model, event.error)
                    self._end_worker(event.error)
                    self._set(EngineState("failed", self._state.model, error=event.error))
                case Began() | Text() | Finished() | Failed():
                    self._take_answer(event)

    def _take_answer(self, event: Began | Text | Finished | Failed) -> None:
        answer = self._answers.get(event.request)
        if answer is None:
            return
        if isinstance(event, (Finished, Failed)):
            del self._answers[event.request]
        answer.take(event)

    def _worker_ended(self, worker: Worker) -> None:
        """The worker's side of the pipe closed although nobody asked for it."""
        exit_code = worker.wait()
        with self._lock:
            if worker is not self._worker:
                return
            error = death_reason(exit_code)
            log.error("the engine's process ended while %s: %s", self._state.phase, error)
            self._end_worker(error)
            self._set(EngineState("failed", self._state.model, error=error))

    def _end_worker(self, error: DeckError) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.end()
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            answer.take(Failed(answer.request, error))
