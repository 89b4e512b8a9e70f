"""The worker's signs of life: a thread that tells the dashboard twice a second that this process runs, and whether its
main thread gets on; knows no model and no torch.

They come while a model loads or a long prompt is read as well. Only while answering is a step timed: compiling a
kernel may take minutes, one step of an answer takes no longer than a GPU that hangs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from core.engine.protocol import Event, Heartbeat

BEAT_S = 0.5
# A step reads one piece of a prompt and draws one token of each answer: under a second on a GPU, several on a slow CPU.
GPU_STEP_S, CPU_STEP_S = 10.0, 60.0


class Outlet:
    """The worker's side of the pipe, into which several threads may speak."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._turn = pipe, threading.Lock()

    def send(self, event: Event) -> None:
        with self._turn:
            self._pipe.send(event)


class Pulse:
    """Beats from `start` to the end of the process. `longest_s`: how long a step may take before it counts as stuck."""

    def __init__(self, outlet: Outlet, longest_s: float = GPU_STEP_S) -> None:
        self.longest_s = longest_s
        self._outlet = outlet
        self._began_s: float | None = None

    def start(self) -> None:
        threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around what the main thread does for answers, but not while it waits to be asked."""
        self._began_s = time.monotonic()
        try:
            yield
        finally:
            self._began_s = None

    @property
    def stuck_s(self) -> float:
        """How long the step takes that is under way, if that is longer than one takes; else 0."""
        began_s = self._began_s
        took_s = 0.0 if began_s is None else time.monotonic() - began_s
        return took_s if took_s > self.longest_s else 0.0

    def _beat(self) -> None:
        try:
            while True:
                self._outlet.send(Heartbeat(self.stuck_s))
                time.sleep(BEAT_S)
        except OSError:
            pass  # The dashboard is gone; whoever listens to it ends the process.
