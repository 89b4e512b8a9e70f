"""The wish to end running work, heard at once by threads that wait or read; knows not what they do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

Reason = Literal["pause", "cancel"]


class Stopped(Exception):
    """The work was told to stop."""


class Stop:
    """One wish for all threads of a job; a cancel replaces a pause."""

    def __init__(self) -> None:
        self.reason: Reason | None = None
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._hang_ups: list[Callable[[], None]] = []

    def request(self, reason: Reason) -> None:
        with self._lock:
            if self.reason is None or reason == "cancel":
                self.reason = reason
            self._event.set()
            for hang_up in self._hang_ups:
                hang_up()

    def check(self) -> None:
        """Raise Stopped where a stop was asked for."""
        if self._event.is_set():
            raise Stopped

    def wait(self, seconds: float) -> None:
        """Wait, at most until a stop is asked for, which raises Stopped."""
        self._event.wait(seconds)
        self.check()

    @contextmanager
    def hanging_up(self, hang_up: Callable[[], None]) -> Iterator[None]:
        """Inside of this a stop calls `hang_up`, which ends a read that another thread waits in."""
        with self._lock:
            self.check()
            self._hang_ups.append(hang_up)
        try:
            yield
        finally:
            with self._lock:
                self._hang_ups.remove(hang_up)
