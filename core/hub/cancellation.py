"""Cancellation of running work, heard at once by threads that wait or read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

Reason = Literal["pause", "cancel"]


class Cancelled(Exception):
    """The work was cancelled or paused."""


class CancelToken:
    """One request for all threads of a job: a pause or a cancel, which replaces a pause."""

    def __init__(self) -> None:
        self.reason: Reason | None = None
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []

    def request(self, reason: Reason) -> None:
        with self._lock:
            if self.reason is None or reason == "cancel":
                self.reason = reason
            self._event.set()
            for callback in self._callbacks:
                callback()

    def raise_if_cancelled(self) -> None:
        """Raise Cancelled after a request."""
        if self._event.is_set():
            raise Cancelled

    def wait(self, seconds: float) -> None:
        """Wait, at most until a request, which raises Cancelled."""
        self._event.wait(seconds)
        self.raise_if_cancelled()

    @contextmanager
    def on_cancel(self, callback: Callable[[], None]) -> Iterator[None]:
        """Inside of this context a request calls `callback`, which ends a read that another thread waits in."""
        with self._lock:
            self.raise_if_cancelled()
            self._callbacks.append(callback)
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.remove(callback)
