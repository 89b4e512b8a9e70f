"""The worker's heartbeat: a thread tells the dashboard twice a second that this process runs, and whether a step hangs.

It beats during a load and a long prefill, too. Only steps of answers are timed: compiling a kernel may take minutes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from core.engine.protocol import Event, Heartbeat

BEAT_S = 0.5
# The longest step, prefill of a chunk and decode of a token for each answer: it takes under 1 s on a GPU, several on a
# slow CPU.
GPU_STEP_S, CPU_STEP_S = 10.0, 60.0


class Outlet:
    """The worker's end of the pipe. Any thread may send."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, threading.Lock()

    def send(self, event: Event) -> None:
        with self._lock:
            self._pipe.send(event)


class Pulse:
    """Beats from `start` to the end of the process. A step longer than `longest_s` counts as stuck."""

    def __init__(self, outlet: Outlet, longest_s: float = GPU_STEP_S) -> None:
        self.longest_s = longest_s
        self._outlet = outlet
        self._began_s: float | None = None

    def start(self) -> None:
        threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time the main thread's work for answers, but not its waiting for commands."""
        self._began_s = time.monotonic()
        try:
            yield
        finally:
            self._began_s = None

    @property
    def stuck_s(self) -> float:
        """Seconds that the current step has taken, if they are more than `longest_s`; else 0."""
        began_s = self._began_s
        took_s = 0.0 if began_s is None else time.monotonic() - began_s
        return took_s if took_s > self.longest_s else 0.0

    def _beat(self) -> None:
        try:
            while True:
                self._outlet.send(Heartbeat(self.stuck_s))
                time.sleep(BEAT_S)
        except OSError:
            pass  # The dashboard is gone; `listen` in core/worker/main.py ends the process.
