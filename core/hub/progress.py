"""How far a download is, as pages and commands show it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from core.common.errors import DeckError

Phase = Literal["queued", "looking", "running", "pausing", "paused", "checking", "done", "failed", "cancelled"]
FilePhase = Literal["waiting", "running", "checking", "done"]
WINDOW_S = 5.0
STEP_S = 0.25


@dataclass(frozen=True, slots=True)
class FileState:
    """One file of a download."""

    name: str
    size_bytes: int
    done_bytes: int = 0
    phase: FilePhase = "waiting"


@dataclass(frozen=True, slots=True)
class JobState:
    """A download at one moment. `left_s` is None while it cannot be told; `notice` tells of a wait or a change."""

    phase: Phase = "queued"
    files: tuple[FileState, ...] = ()
    done_bytes: int = 0
    total_bytes: int = 0
    speed_bytes_s: float = 0.0
    left_s: float | None = None
    error: DeckError | None = None
    notice: DeckError | None = None


class Speed:
    """Bytes a second over the last seconds. Any thread may count."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._total = 0
        self._points = deque([(clock(), 0)])

    def count(self, num_bytes: int) -> None:
        with self._lock:
            self._total += num_bytes
            now = self._clock()
            if now - self._points[-1][0] >= STEP_S:
                self._points.append((now, self._total))
                self._drop_old(now)

    def bytes_s(self) -> float:
        with self._lock:
            now = self._clock()
            self._drop_old(now)
            since, total = self._points[0]
            return (self._total - total) / (now - since) if now > since else 0.0

    def _drop_old(self, now: float) -> None:
        """Keep one point that is older than the window, from which it is measured."""
        while len(self._points) > 1 and self._points[1][0] <= now - WINDOW_S:
            self._points.popleft()
        if len(self._points) == 1 and self._points[0][0] < now - WINDOW_S:
            self._points[0] = (now - WINDOW_S, self._total)


class FileProgress:
    """One file's progress as it is shown: what was shown once is never taken back."""

    def __init__(self, name: str, size_bytes: int) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.phase: FilePhase = "waiting"
        # What this file waits for, if its server keeps it waiting.
        self.notice: DeckError | None = None
        self._shown = 0

    def reached(self, done_bytes: int) -> None:
        self._shown = max(self._shown, min(done_bytes, self.size_bytes))

    def finished(self) -> None:
        self._shown = self.size_bytes
        self.notice = None
        self.phase = "done"

    @property
    def state(self) -> FileState:
        return FileState(self.name, self.size_bytes, self._shown, self.phase)
