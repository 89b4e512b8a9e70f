"""This machine's engine: starts, feeds and ends the worker process.

Every method may be called from any thread. The lock is held for moments only: a worker is detached under it, and is
started and ended without it. What pages and gauges read needs no lock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from core.common.errors import DeckError, EngineError, GpuUseError
from core.common.paths import model_name
from core.engine.answer import Answer
from core.engine.engine_base import EngineBase
from core.engine.memory_truth import memory_truth
from core.engine.process import WorkerProcess
from core.engine.protocol import (
    AnswerEvent,
    AnswerStats,
    Cancel,
    EngineState,
    Event,
    Failed,
    Finished,
    Generate,
    ImportsDone,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    Paused,
    PromptScored,
    PromptStarted,
    TextChunk,
)
from core.engine.request_options import PLAIN, RequestOptions
from core.engine.sampling_params import Sampling
from core.engine.thought import ThoughtRules
from core.engine.warm_worker import WarmWorker
from core.gpu.torch_support import is_cpu_chosen
from core.memory.adapter_room import NO_ROOM, AdapterRoom
from core.memory.cache_choice import EVERY_CHAT_FULL, CacheChoice

log = logging.getLogger(__name__)


class Runner(EngineBase):
    """Loads one model at a time and answers with it. `warm_worker` makes loads begin at once, if it is started."""

    def __init__(self, worker_module: str = "core.worker.main") -> None:
        super().__init__()
        self._worker_module = worker_module
        self._worker: WorkerProcess | None = None
        # Detached, and perhaps not gone yet: what these hold of a GPU is not free before.
        self._leaving: list[WorkerProcess] = []
        # Counts loads and unloads: who waited for something sees whether another one came meanwhile.
        self._turn = 0
        # Requests that are being read: what answers them must not fall asleep meanwhile.
        self._num_expected = 0
        self._load_began_s = 0.0
        self._last_load: Load | None = None
        # What was asleep and is being loaded again: where that fails it can be tried again.
        self._waking: Load | None = None
        self._gpu_report: ImportsDone | None = None
        self.warm_worker = WarmWorker(self._start_warm_worker, lambda: self.is_idle)

    @property
    def is_idle(self) -> bool:
        """Nothing loads or answers."""
        return self._state.phase != "loading" and not self._answers

    @property
    def worker_pid(self) -> int | None:
        """The engine's process, by which NVML tells its memory from others'."""
        worker = self._worker
        return None if worker is None else worker.pid

    @property
    def silent_s(self) -> float:
        """See Engine.silent_s. The engine may go on by itself; unload() ends it."""
        worker = self._worker
        return 0.0 if worker is None else worker.silent_s

    @property
    def server_counter(self) -> None:
        """This machine has the tokenizers of its models."""
        return None

    @property
    def gpu_report(self) -> ImportsDone | None:
        """What the last worker that looked says of torch and the GPUs; None where none has."""
        return self._gpu_report

    def load(
        self,
        folder: Path,
        context_tokens: int = 0,
        num_slots: int = 1,
        kernel: str | None = None,
        force: bool = False,
        on_cpu: bool = False,
        adapters: AdapterRoom = NO_ROOM,
        cache: CacheChoice = EVERY_CHAT_FULL,
    ) -> None:
        """Begin to load the checkpoint in `folder`, in place of whatever is loaded; `state` tells how it goes.

        `context_tokens` 0 takes the model's own limit, up to what the engine takes by default. `kernel` None takes
        the fastest that fits; `force` loads on a GPU although the plan says that it does not fit; `on_cpu` leaves the
        GPUs alone, as does a start with --cpu. `adapters` is the room for LoRA adapters, `cache` what is promised
        to the chats.
        """
        self.begin_load(Load(folder, context_tokens, num_slots, kernel, force, on_cpu, adapters, cache))()

    def begin_load(self, command: Load) -> Callable[[], None]:
        """The part of `load` that waits for nothing. The function that it returns does the rest."""
        command = replace(command, on_cpu=command.on_cpu or is_cpu_chosen())
        with self._lock:
            turn = self._detach(EngineState("loading", model_name(command.folder), folder=command.folder))
            self._last_load, self._waking = command, None
        return partial(self._start, turn, command)

    def unload(self) -> None:
        """End the worker process: all of its memory comes back. Running answers keep what was written."""
        self.begin_unload()()

    def begin_unload(self) -> Callable[[], None]:
        """The part of `unload` that waits for nothing. The function that it returns does the rest."""
        self._detach(EngineState())
        return self._end_leaving

    def sleep(self) -> bool:
        """Unload a model that nobody uses; `state.asleep` brings it back. False where there is none, or it answers or
        will."""
        with self._lock:
            is_free = self._state.phase == "ready" and self.is_idle and not self._num_expected
            if not is_free or self._last_load is None:
                return False
            self._detach(EngineState(asleep=self._last_load))
        self._end_leaving()
        return True

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Inside the `with` block no model falls asleep: somebody is about to ask it."""
        with self._lock:
            self._num_expected += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_expected -= 1

    def wake(self) -> None:
        """Begin to load again what is asleep; nothing where nothing is. Where that fails, such as for want of memory
        that another program has for a while, it can be tried again."""
        with self._lock:
            asleep = self._state.asleep
            if asleep is None:
                return
            start = self.begin_load(asleep)
            self._waking = asleep
        start()

    def close(self) -> None:
        """End everything that was started. A later load still works, with a worker of its own."""
        self.warm_worker.close()
        self.unload()

    def generate(
        self,
        prompt: str | tuple[int, ...],
        sampling: Sampling,
        continues: bool = False,
        client: str = "",
        thought: ThoughtRules | None = None,
        options: RequestOptions = PLAIN,
    ) -> Answer:
        """See Engine.generate. Raises EngineError when no model is loaded, or when the engine hangs and no more prompts
        can wait for it."""
        # Plain text: the worker does not know a Conversation, which was meant for another server.
        prompt = str(prompt) if isinstance(prompt, str) else prompt
        with self._lock:
            if self._state.phase != "ready" or self._worker is None:
                raise EngineError("nothing_loaded")
            answer = Answer(next(self._numbers), self._cancel)
            answer.adapter = options.adapter.folder if options.adapter is not None else None
            self._worker.send(Generate(answer.request, prompt, sampling, continues, client, thought, options))
            self._keep(answer)
            return answer

    def _cancel(self, request: int) -> None:
        with self._lock:
            worker, answer = self._worker, self._answers.get(request)
            if worker is None or answer is None:
                return
            is_withdrawn = worker.withdraw(request)
            if not is_withdrawn:
                worker.send(Cancel(request))
            if not is_withdrawn and not worker.silent_s:
                return  # The worker says itself how far it came.
            self._forget(request)
        stats = AnswerStats(answer.prompt_tokens, 0, answer.num_tokens, 0.0, 0.0, 0.0, 0)
        answer.apply(Finished(request, "cancelled", stats))

    def _start_warm_worker(self) -> WorkerProcess:
        return WorkerProcess(self._worker_module, self._on_event, self._on_end, True, self._on_imports_done)

    # The caller of these does not hold the lock ---------------------------------------------------------------------

    def _detach(self, state: EngineState, only: WorkerProcess | None = None) -> int:
        """Take away the worker and its answers and show `state` instead; nothing where `only` is not that worker.

        The number of this turn, -1 where nothing was done.
        """
        with self._lock:
            if only is not None and only is not self._worker:
                return -1
            self._turn += 1
            turn = self._turn
            if self._worker is not None:
                self._leaving.append(self._worker)
            self._worker = None
            ended = self._forget_all()
            self._load_began_s = time.monotonic()
            self._set(state)
        error = state.error or EngineError("answer_model_unloaded")
        for answer in ended:
            answer.apply(Failed(answer.request, error))
        return turn

    def _start(self, turn: int, command: Load) -> None:
        """Start the worker of a load, unless another load or an unload came after it."""
        self._end_leaving()
        try:
            worker = self.warm_worker.claim() or WorkerProcess(self._worker_module, self._on_event, self._on_end)
        except (OSError, RuntimeError) as error:
            log.error("no process can be started for the engine: %s", error)
            with self._lock:
                if turn == self._turn:
                    failure = EngineError("worker_start", why=str(error))
                    self._set(replace(self._state, phase="failed", error=failure, asleep=self._waking))
            return
        with self._lock:
            is_wanted = turn == self._turn
            if is_wanted:
                self._worker = worker
                worker.send(command)
        if not is_wanted:
            worker.end()
        elif worker.has_ended:
            # Its end may have been reported before it was known as the engine's worker.
            self._on_end(worker)

    def _end_leaving(self) -> None:
        """Wait until every detached worker is gone."""
        leaving = tuple(self._leaving)
        for worker in leaving:
            worker.end()
        with self._lock:
            self._leaving = [worker for worker in self._leaving if worker not in leaving]

    # The listening thread of a worker -------------------------------------------------------------------------------

    def _on_imports_done(self, event: ImportsDone) -> None:
        self._gpu_report = event

    def _on_event(self, worker: WorkerProcess, event: Event) -> None:
        match event:
            case LoadProgress():
                self._on_progress(worker, event)
            case Loaded():
                self._on_progress(worker, event)
                if (memory := event.facts.memory) is not None:
                    log.info("%s: %s", event.facts.name, memory_truth(memory, event.facts.cache_bytes).log_line)
            case LoadFailed():
                log.error("load of %s failed: %s", self._state.model, event.error)
                if isinstance(event.error, GpuUseError):
                    self._note_gpu(event.error)
                self._fail(worker, event.error)
            case PromptStarted() | PromptScored() | Paused() | TextChunk() | Finished() | Failed():
                self._on_answer_event(worker, event)

    def _on_progress(self, worker: WorkerProcess, event: LoadProgress | Loaded) -> None:
        try:
            with self._lock:
                if worker is self._worker:
                    self._set(self._after(event))
        except Exception:  # Else the state would be "loading" for ever.
            log.exception("an event of a load")
            self._fail(worker, EngineError("worker_garbled"))

    def _after(self, event: LoadProgress | Loaded) -> EngineState:
        if isinstance(event, LoadProgress):
            return replace(self._state, stage=event.stage, fraction=event.fraction)
        took_s = time.monotonic() - self._load_began_s
        if event.facts.memory is not None:
            self._note_gpu(None)
        self._waking = None
        state = EngineState("ready", event.facts.name, facts=event.facts, fraction=1.0, ready_after_s=took_s)
        return replace(state, folder=self._state.folder)

    def _note_gpu(self, error: GpuUseError | None) -> None:
        """What a load has just found out about the GPUs."""
        self._gpu_report = replace(self._gpu_report or ImportsDone(), gpu_error=error)

    def _on_answer_event(self, worker: WorkerProcess, event: AnswerEvent) -> None:
        with self._lock:
            answer = self._answers.get(event.request) if worker is self._worker else None
            if answer is not None and isinstance(event, (Finished, Failed)):
                self._forget(event.request)
        if answer is None:
            return
        try:
            answer.apply(event)
        except Exception as error:  # One answer's damage is not the others'.
            log.exception("an event of an answer")
            answer.cancel()
            with self._lock:
                self._forget(event.request)
            answer.apply(Failed(event.request, EngineError("engine_fault", why=type(error).__name__)))

    def _on_end(self, worker: WorkerProcess) -> None:
        """The worker's side of the pipe closed although nobody asked for it."""
        error = worker.end_reason()
        if worker is not self._worker:
            worker.end()  # A warm one: nobody can speak to it any more.
            return
        log.error("the engine's process ended while %s: %s", self._state.phase, error)
        self._fail(worker, error)

    def _fail(self, worker: WorkerProcess, error: DeckError) -> None:
        with self._lock:
            state = self._state
            failed = EngineState("failed", state.model, error=error, folder=state.folder, asleep=self._waking)
            is_detached = self._detach(failed, worker) >= 0
        if is_detached:
            self._end_leaving()
