"""Keeps one worker process waiting with everything imported that a load needs, which takes seconds; knows no model.

It is started when nothing loads or answers, and only where the host has memory to spare. One that dies is replaced, a
few times; nobody hears of it but the log.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from core.common.host_memory import available_bytes
from core.engine.process import Worker

log = logging.getLogger(__name__)
# A spare holds 0.4 GiB of its own with torch's CPU build, more with a CUDA build; a model's files want the page cache.
MIN_AVAILABLE_BYTES = 4 * 2**30
# How long nothing has loaded or answered before one is started: whoever just came up has other things to do.
QUIET_S = 3.0
LOOK_S = 0.5
MAX_DEATHS = 3


class Spare:
    """At most one waiting worker. `start` makes one, `is_quiet` says whether the engine has nothing to do."""

    def __init__(
        self,
        start: Callable[[], Worker],
        is_quiet: Callable[[], bool],
        memory_bytes: Callable[[], int] = available_bytes,
    ) -> None:
        self._start, self._is_quiet, self._memory_bytes = start, is_quiet, memory_bytes
        self._changed = threading.Condition()
        self._keeper: threading.Thread | None = None
        self._worker: Worker | None = None
        self._deaths = 0
        self._is_closed = False

    def keep(self, quiet_s: float = QUIET_S) -> None:
        """From now on have one waiting whenever nothing has loaded or answered for `quiet_s`."""
        with self._changed:
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep, args=(quiet_s,), name="engine-spare", daemon=True)
                self._keeper.start()

    def take(self) -> Worker | None:
        """The waiting worker, which is the caller's from now on; None where there is none."""
        with self._changed:
            self._bury()
            worker, self._worker = self._worker, None
            return worker

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until a spare has imported everything; False where none did within `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._worker is not None or self._is_closed, timeout_s)
            worker = self._worker
        return worker is not None and worker.settled.wait(timeout_s) and worker.is_alive

    def close(self) -> None:
        """End the spare, and have none any more."""
        with self._changed:
            self._is_closed = True
            worker, self._worker = self._worker, None
            self._changed.notify_all()
        if worker is not None:
            worker.end()

    def _keep(self, quiet_s: float) -> None:
        num_quiet = 0
        while not self._is_closed and self._deaths < MAX_DEATHS:
            try:
                with self._changed:
                    self._bury()
                    is_missing = self._worker is None and self._deaths < MAX_DEATHS
                num_quiet = num_quiet + 1 if self._is_quiet() else 0
                if is_missing and num_quiet * LOOK_S > quiet_s and self._has_room():
                    self._begin()
            except Exception as error:  # The thread's edge: loads then start workers of their own.
                self._deaths += 1
                log.warning("no spare worker could be started: %s", error)
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed, LOOK_S)

    def _begin(self) -> None:
        """Not under the lock, which a load and the way out need: a process may take long to start."""
        worker = self._start()
        with self._changed:
            if not self._is_closed:
                self._worker = worker
            self._changed.notify_all()
        if self._is_closed:
            worker.end()

    def _has_room(self) -> bool:
        return self._memory_bytes() >= MIN_AVAILABLE_BYTES

    def _bury(self) -> None:
        """Forget a spare that died while it waited."""
        if self._worker is not None and not self._worker.is_alive:
            self._worker = None
            self._deaths += 1
            log.warning("a spare worker ended while it waited (%d of at most %d)", self._deaths, MAX_DEATHS)
