"""The engine that pages and the API use: this machine's own or one on another server, whichever was chosen last.

One model answers at a time: to choose the one kind lets go of the other. Knows no page.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from core.engine.answer import Answer
from core.engine.interface import Engine, PromptCounter
from core.engine.protocol import EngineState, ImportsDone
from core.engine.runner import Runner
from core.engine.sampling_params import Sampling
from core.remote.engine import RemoteEngine
from core.remote.selection import Choice, choice_path, read_choice, write_choice

log = logging.getLogger(__name__)
# How soon a dashboard takes up what another process chose.
LOOK_S = 1.0


class Engines:
    """Runner's interface over both. Everything here may be called from any thread."""

    def __init__(self, local: Runner, remote: RemoteEngine | None = None) -> None:
        self.local, self.remote = local, remote or RemoteEngine()
        self._lock = threading.RLock()
        self._choice: Choice | None = None
        self._following: threading.Thread | None = None
        self._stop = threading.Event()

    @property
    def choice(self) -> Choice | None:
        """The model of another server that is in use; None while this machine's own engine is."""
        return self._choice

    @property
    def state(self) -> EngineState:
        return self._active.state

    @property
    def running_answers(self) -> list[Answer]:
        return self._active.running_answers

    @property
    def silent_s(self) -> float:
        return self._active.silent_s

    @property
    def server_counter(self) -> PromptCounter | None:
        return self._active.server_counter

    @property
    def worker_pid(self) -> int | None:
        """The process on this machine by which NVML tells the engine's memory from others'."""
        return self.local.worker_pid

    @property
    def gpu_report(self) -> ImportsDone | None:
        """See Runner.gpu_report."""
        return self.local.gpu_report

    def load(
        self,
        folder: Path,
        context_tokens: int = 0,
        num_slots: int = 1,
        kernel: str | None = None,
        force: bool = False,
        on_cpu: bool = False,
    ) -> None:
        """Load on this machine, see Runner.load."""
        with self._lock:
            self._leave_remote()
            start = self.local.begin_load(folder, context_tokens, num_slots, kernel, force, on_cpu)
        start()

    def unload(self) -> None:
        """Let go of the model, wherever it is. Running answers keep what was written."""
        with self._lock:
            self._leave_remote()
            end = self.local.begin_unload()
        end()

    def connect(self, choice: Choice) -> None:
        """Use a model of another server from now on, also after the next start."""
        with self._lock:
            write_choice(choice)
            end = self._connect(choice)
        end()

    def reconnect(self) -> None:
        """Look for the lost server now."""
        self.remote.reconnect()

    def generate(
        self, prompt: str | tuple[int, ...], sampling: Sampling, continues: bool = False, client: str = ""
    ) -> Answer:
        """See Engine.generate."""
        return self._active.generate(prompt, sampling, continues, client)

    def wait_while_loading(self, timeout_s: float | None = None) -> EngineState:
        """Wait for the end of a load or of connecting, at most `timeout_s`; the state as it then is."""
        return self._active.wait_while_loading(timeout_s)

    def follow_choice(self) -> None:
        """Take up what was chosen before, and from now on what another process chooses."""
        with self._lock:
            if self._following is None:
                self._following = threading.Thread(target=self._follow, name="engine-choice", daemon=True)
                self._following.start()

    def close(self) -> None:
        """End both engines; what was chosen stays chosen."""
        self._stop.set()
        with self._lock:
            self.remote.disconnect()
        self.local.close()

    @property
    def _active(self) -> Engine:
        return self.local if self._choice is None else self.remote

    def _connect(self, choice: Choice) -> Callable[[], None]:
        """What it returns waits for the end of this machine's engine."""
        end = self.local.begin_unload()
        self.remote.connect(choice)
        self._choice = choice
        return end

    def _leave_remote(self) -> None:
        if read_choice() is not None:
            write_choice(None)
        if self._choice is not None:
            self._choice = None
            self.remote.disconnect()

    def _follow(self) -> None:
        seen: int | None = None
        while True:
            changed_ns = _changed_ns()
            if changed_ns != seen:
                seen = changed_ns
                try:
                    self._take_up(read_choice())
                except Exception:  # The thread's edge: the next choice is taken up all the same.
                    log.exception("the choice of another process was not taken up")
            if self._stop.wait(LOOK_S):
                return

    def _take_up(self, choice: Choice | None) -> None:
        end: Callable[[], None] | None = None
        with self._lock:
            if self._stop.is_set():
                return
            if choice is not None and choice == self._choice:
                # It was begun anew where it was lost.
                if self.remote.state.phase == "failed":
                    self.remote.reconnect()
            elif choice is not None:
                end = self._connect(choice)
            elif self._choice is not None:
                self._choice = None
                self.remote.disconnect()
        if end is not None:
            end()


def _changed_ns() -> int | None:
    try:
        return os.stat(choice_path()).st_mtime_ns
    except OSError:
        return None
