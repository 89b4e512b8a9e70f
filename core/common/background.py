"""Work in threads of its own, whose progress pages poll."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from typing import Any

from core.common.errors import DeckError

log = logging.getLogger(__name__)
# What is kept; more would be of pages that nobody looks at any more.
MAX_TASKS = 64
Report = Callable[[int, int], None]
Work = Callable[[Report], Any]


class Task:
    """One piece of work, which may report how much is done of how much. When `is_done`, `result` or `error` holds."""

    def __init__(self, work: Work) -> None:
        self.result: Any = None
        self.error: DeckError | None = None
        self.progress = (0, 0)
        self._done = threading.Event()
        threading.Thread(target=self._run, args=(work,), name="task", daemon=True).start()

    @property
    def is_done(self) -> bool:
        return self._done.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; False where it takes longer than `timeout_s`."""
        return self._done.wait(timeout_s)

    def _run(self, work: Work) -> None:
        try:
            self.result = work(self._report)
        except DeckError as error:
            self.error = error
        except Exception as error:  # The thread's edge: whatever it is becomes a sentence on the page.
            log.exception("a task failed")
            self.error = DeckError("lookup_fault", why=type(error).__name__)
        finally:
            self._done.set()

    def _report(self, done: int, total: int) -> None:
        self.progress = (done, total)


class TaskPool:
    """The work of a process by what it is about: each is done once, until it is forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[Hashable, Task] = {}

    def get(self, key: Hashable, work: Work) -> Task:
        """The task for `key`, which begins now if nobody began it before."""
        with self._lock:
            if key not in self._tasks:
                # Not what is under way: it would be begun again beside itself by whoever asks next.
                done = [old for old, task in self._tasks.items() if task.is_done]
                for old in done[: max(0, len(self._tasks) + 1 - MAX_TASKS)]:
                    del self._tasks[old]
                self._tasks[key] = Task(work)
            return self._tasks[key]

    def known(self, key: Hashable) -> Task | None:
        """The task for `key` if somebody began it."""
        with self._lock:
            return self._tasks.get(key)

    def forget(self, key: Hashable) -> None:
        """Begin anew the next time."""
        with self._lock:
            self._tasks.pop(key, None)

    def forget_errors(self) -> None:
        """Begin anew with whatever has failed: something is different now."""
        with self._lock:
            self._tasks = {key: task for key, task in self._tasks.items() if not _has_failed(task)}


def _has_failed(task: Task) -> bool:
    """A list of branches in which one has an error counts as well: each of them was asked for by itself."""
    parts = task.result if isinstance(task.result, tuple) else ()
    return task.is_done and (task.error is not None or any(getattr(part, "error", None) for part in parts))
