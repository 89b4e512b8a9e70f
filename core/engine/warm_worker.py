"""One worker process that waits with everything imported that a load needs, which takes seconds.

It is started while nothing loads or answers, and only where the host has memory to spare. One that dies is replaced, a
few times; only the log says so.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from core.common.host_memory import available_bytes
from core.engine.process import WorkerProcess

log = logging.getLogger(__name__)
# A warm worker holds 0.4 GiB of its own with torch's CPU build, more with a CUDA build; a model's files want the page
# cache.
MIN_AVAILABLE_BYTES = 4 * 2**30
# How long nothing must have loaded or answered before one is started: a dashboard that just came up has other work.
IDLE_S = 3.0
POLL_INTERVAL_S = 0.5
MAX_DEATHS = 3


class WarmWorker:
    """At most one waiting worker. `make` starts a process, `is_idle` says whether the engine has nothing to do."""

    def __init__(
        self,
        make: Callable[[], WorkerProcess],
        is_idle: Callable[[], bool],
        memory_bytes: Callable[[], int] = available_bytes,
    ) -> None:
        self._make, self._is_idle, self._memory_bytes = make, is_idle, memory_bytes
        self._changed = threading.Condition()
        self._keeper: threading.Thread | None = None
        self._worker: WorkerProcess | None = None
        self._deaths = 0
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        worker = self._worker
        return None if worker is None else worker.pid

    def start(self, idle_s: float = IDLE_S) -> threading.Thread:
        """From now on have one waiting whenever nothing has loaded or answered for `idle_s`.

        The thread that sees to it ends with `close`, or after too many deaths.
        """
        with self._changed:
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep, args=(idle_s,), name="engine-warm", daemon=True)
                self._keeper.start()
            return self._keeper

    def start_one(self) -> None:
        """Start a worker now."""
        # Without the lock, which a load and the way out need: a process may take long to start.
        worker = self._make()
        with self._changed:
            if not self._is_closed:
                self._worker = worker
            self._changed.notify_all()
        if self._is_closed:
            worker.end()

    def claim(self) -> WorkerProcess | None:
        """The waiting worker, which is the caller's from now on; None where there is none."""
        with self._changed:
            self._reap()
            worker, self._worker = self._worker, None
            return worker

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until a worker has imported everything; False where none did within `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._worker is not None or self._is_closed, timeout_s)
            worker = self._worker
        return worker is not None and worker.settled.wait(timeout_s) and worker.is_alive

    def close(self) -> None:
        """End the waiting worker, and start none any more."""
        with self._changed:
            self._is_closed = True
            worker, self._worker = self._worker, None
            self._changed.notify_all()
        if worker is not None:
            worker.end()

    def _keep(self, idle_s: float) -> None:
        num_idle = 0
        while not self._is_closed and self._deaths < MAX_DEATHS:
            try:
                with self._changed:
                    self._reap()
                    is_missing = self._worker is None and self._deaths < MAX_DEATHS
                num_idle = num_idle + 1 if self._is_idle() else 0
                if is_missing and num_idle * POLL_INTERVAL_S > idle_s and self._memory_bytes() >= MIN_AVAILABLE_BYTES:
                    self.start_one()
            except Exception as error:  # The thread's edge: loads then start workers of their own.
                self._deaths += 1
                log.warning("no warm worker could be started: %s", error)
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed, POLL_INTERVAL_S)

    def _reap(self) -> None:
        """Forget a worker that died while it waited."""
        if self._worker is not None and not self._worker.is_alive:
            self._worker = None
            self._deaths += 1
            log.warning("a warm worker ended while it waited (%d of at most %d)", self._deaths, MAX_DEATHS)
