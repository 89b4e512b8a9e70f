"""The one engine of this process: starts, feeds and ends the worker process; knows nothing of torch, chats and pages.

Everything here may be called from any thread. Its lock is held for moments only: a worker is let go of under it, and
is started, written to and ended without it. What pages and gauges read needs no lock.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from core.common.errors import DeckError, EngineError, GpuUseError
from core.engine.answer import Answer
from core.engine.process import Worker
from core.engine.protocol import (
    AnswerStats,
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
    Prepared,
    Text,
)
from core.engine.sampling_params import Sampling
from core.engine.warm_worker import QUIET_S, Spare

log = logging.getLogger(__name__)


class Runner:
    """Loads one model at a time and answers with it. `state` is what pages show."""

    def __init__(self, worker_module: str = "core.worker.main") -> None:
        self._worker_module = worker_module
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._state = EngineState()
        self._worker: Worker | None = None
        # Let go of, and perhaps not gone yet: what they hold of a GPU is not free before.
        self._leaving: list[Worker] = []
        # Counts loads and unloads: whoever waited for something looks whether another one came meanwhile.
        self._turn = 0
        # Never changed, always replaced: whoever reads it needs no lock.
        self._answers: dict[int, Answer] = {}
        self._numbers = itertools.count(1)
        self._asked_s = 0.0
        self._gpu_word: Prepared | None = None
        self._spare = Spare(self._start_spare, self._is_quiet)

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def running_answers(self) -> list[Answer]:
        """The answers that are queued or being written, oldest first."""
        return list(self._answers.values())

    @property
    def worker_pid(self) -> int | None:
        """The engine's process, by which NVML tells its memory from others'."""
        worker = self._worker
        return None if worker is None else worker.pid

    @property
    def silent_s(self) -> float:
        """For how long the engine has not answered, 0 while it does. It may go on by itself; unload() ends it."""
        worker = self._worker
        return 0.0 if worker is None else worker.silent_s

    @property
    def server_counter(self) -> None:
        """This machine has the tokenizers of its models."""
        return None

    @property
    def gpu_word(self) -> Prepared | None:
        """What the last worker that looked says of torch and the GPUs; None where none has."""
        return self._gpu_word

    def load(
        self,
        folder: Path,
        context_tokens: int = 0,
        num_slots: int = 1,
        kernel: str | None = None,
        force: bool = False,
        on_cpu: bool = False,
    ) -> None:
        """Begin to load the checkpoint in `folder`, in place of whatever is loaded; `state` tells how it goes.

        `context_tokens` 0 takes the model's own limit, up to what the engine takes by default. `kernel` None takes
        the fastest that fits; `force` loads on a GPU although the plan says that it does not fit; `on_cpu` leaves the
        GPUs alone.
        """
        self.begin_load(folder, context_tokens, num_slots, kernel, force, on_cpu)()

    def begin_load(
        self, folder: Path, context_tokens: int, num_slots: int, kernel: str | None, force: bool, on_cpu: bool
    ) -> Callable[[], None]:
        """The part of `load` that waits for nothing. What it returns does the rest."""
        turn = self._let_go(EngineState("loading", folder.name))
        return partial(self._start, turn, Load(folder, context_tokens, num_slots, kernel, force, on_cpu))

    def unload(self) -> None:
        """End the worker process: all of its memory comes back. Running answers keep what was written."""
        self.begin_unload()()

    def begin_unload(self) -> Callable[[], None]:
        """The part of `unload` that waits for nothing. What it returns does the rest."""
        self._let_go(EngineState())
        return self._end_leaving

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

    def generate(
        self, prompt: str | tuple[int, ...], sampling: Sampling, continues: bool = False, client: str = ""
    ) -> Answer:
        """See Engine.generate. Raises EngineError when no model is loaded, or when the engine hangs and no more prompts
        can wait for it."""
        # Plain text: a chat that was meant for another server is a kind of text that the worker does not know.
        prompt = str(prompt) if isinstance(prompt, str) else prompt
        with self._lock:
            if self._state.phase != "ready" or self._worker is None:
                raise EngineError("nothing_loaded")
            answer = Answer(next(self._numbers), self._cancel)
            self._worker.send(Generate(answer.request, prompt, sampling, continues, client))
            self._answers = self._answers | {answer.request: answer}
            return answer

    def wait_while_loading(self, timeout_s: float | None = None) -> EngineState:
        """Wait for the end of a load, at most `timeout_s`; the state as it then is."""
        with self._changed:
            self._changed.wait_for(lambda: self._state.phase != "loading", timeout_s)
            return self._state

    def _cancel(self, request: int) -> None:
        with self._lock:
            worker, answer = self._worker, self._answers.get(request)
            if worker is None or answer is None:
                return
            is_withdrawn = worker.withdraw(request)
            if not is_withdrawn:
                worker.send(Cancel(request))
            if not is_withdrawn and not worker.silent_s:
                return  # It says itself how far it came.
            self._forget(request)
        stats = AnswerStats(answer.prompt_tokens, 0, answer.num_tokens, 0.0, 0.0, 0.0, 0)
        answer.take(Finished(request, "cancelled", stats))

    def _start_spare(self) -> Worker:
        return Worker(self._worker_module, self._take, self._worker_ended, True, self._hear_spare)

    def _hear_spare(self, prepared: Prepared) -> None:
        self._gpu_word = prepared

    def _is_quiet(self) -> bool:
        return self._state.phase != "loading" and not self._answers

    # What follows needs the lock ------------------------------------------------------------------------------------

    def _set(self, state: EngineState) -> None:
        self._state = state
        self._changed.notify_all()

    def _forget(self, request: int) -> None:
        self._answers = {number: answer for number, answer in self._answers.items() if number != request}

    # What follows must not have it ----------------------------------------------------------------------------------

    def _let_go(self, state: EngineState, of: Worker | None = None) -> int:
        """Take away the worker and its answers and show `state` instead; only that of one worker, where one is given.

        The number of this turn, -1 where that worker had been let go of before.
        """
        with self._lock:
            if of is not None and of is not self._worker:
                return -1
            self._turn += 1
            turn = self._turn
            if self._worker is not None:
                self._leaving.append(self._worker)
            self._worker = None
            ended, self._answers = self._answers, {}
            self._asked_s = time.monotonic()
            self._set(state)
        error = state.error or EngineError("answer_model_unloaded")
        for answer in ended.values():
            answer.take(Failed(answer.request, error))
        return turn

    def _start(self, turn: int, command: Load) -> None:
        """Start the worker of a load, unless another load or an unload came after it."""
        self._end_leaving()
        try:
            worker = self._spare.take() or Worker(self._worker_module, self._take, self._worker_ended)
        except (OSError, RuntimeError) as error:
            log.error("no process can be started for the engine: %s", error)
            with self._lock:
                if turn == self._turn:
                    failure = EngineError("worker_start", why=str(error))
                    self._set(EngineState("failed", command.folder.name, error=failure))
            return
        with self._lock:
            is_wanted = turn == self._turn
            if is_wanted:
                self._worker = worker
                worker.send(command)
        if not is_wanted:
            worker.end()
        elif worker.has_ended:
            # It may have said so before it was known as the engine's.
            self._worker_ended(worker)

    def _end_leaving(self) -> None:
        """Wait until all that was let go of is gone."""
        leaving = tuple(self._leaving)
        for worker in leaving:
            worker.end()
        with self._lock:
            self._leaving = [worker for worker in self._leaving if worker not in leaving]

    def _take(self, worker: Worker, event: Event) -> None:
        match event:
            case LoadProgress() | Loaded():
                self._take_progress(worker, event)
            case LoadFailed():
                log.error("load of %s failed: %s", self._state.model, event.error)
                if isinstance(event.error, GpuUseError):
                    self._note_gpu(event.error)
                self._fail(worker, event.error)
            case Began() | Text() | Finished() | Failed():
                self._take_answer(worker, event)

    def _take_progress(self, worker: Worker, event: LoadProgress | Loaded) -> None:
        try:
            with self._lock:
                if worker is self._worker:
                    self._set(self._after(event))
        except Exception:  # Else it would load for ever.
            log.exception("an event of a load")
            self._fail(worker, EngineError("worker_garbled"))

    def _after(self, event: LoadProgress | Loaded) -> EngineState:
        if isinstance(event, LoadProgress):
            return replace(self._state, stage=event.stage, fraction=event.fraction)
        took_s = time.monotonic() - self._asked_s
        if event.facts.memory is not None:
            self._note_gpu(None)
        return EngineState("ready", event.facts.name, facts=event.facts, fraction=1.0, ready_after_s=took_s)

    def _note_gpu(self, error: GpuUseError | None) -> None:
        """What a load has just found out about the GPUs."""
        self._gpu_word = replace(self._gpu_word or Prepared(), gpu_error=error)

    def _take_answer(self, worker: Worker, event: Began | Text | Finished | Failed) -> None:
        with self._lock:
            answer = self._answers.get(event.request) if worker is self._worker else None
            if answer is not None and isinstance(event, (Finished, Failed)):
                self._forget(event.request)
        if answer is None:
            return
        try:
            answer.take(event)
        except Exception as error:  # One answer's damage is not the others'.
            log.exception("an event of an answer")
            answer.cancel()
            with self._lock:
                self._forget(event.request)
            answer.take(Failed(event.request, EngineError("engine_fault", why=type(error).__name__)))

    def _worker_ended(self, worker: Worker) -> None:
        """The worker's side of the pipe closed although nobody asked for it."""
        error = worker.end_reason()
        if worker is not self._worker:
            worker.end()  # A spare one: nobody can speak to it any more.
            return
        log.error("the engine's process ended while %s: %s", self._state.phase, error)
        self._fail(worker, error)

    def _fail(self, worker: Worker, error: DeckError) -> None:
        if self._let_go(EngineState("failed", self._state.model, error=error), worker) >= 0:
            self._end_leaving()
