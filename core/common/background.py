"""Work in threads of its own, whose progress pages poll."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from typing import Any

from core.common.errors import DeckError

log = logging.getLogger(__name__)
# How many tasks are kept: more would belong to pages that nobody views any more.
MAX_TASKS = 64
Report = Callable[[int, int], None]
Work = Callable[[Report], Any]


class Task:
    """One piece of work in a thread. `progress` is (done, total). When `is_done`, `result` or `error` is set."""

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
    """The tasks of a process by key. Each runs once, in a thread of its own, until it is forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[Hashable, Task] = {}

    def get(self, key: Hashable, work: Work) -> Task:
        """The task for `key`, which starts now if it is new."""
        with self._lock:
            if key not in self._tasks:
                # A running task stays: whoever asks next would start it a second time.
                done = [old for old, task in self._tasks.items() if task.is_done]
                for old in done[: max(0, len(self._tasks) + 1 - MAX_TASKS)]:
                    del self._tasks[old]
                self._tasks[key] = Task(work)
            return self._tasks[key]

    def known(self, key: Hashable) -> Task | None:
        """The task for `key`, None if nobody started it."""
        with self._lock:
            return self._tasks.get(key)

    def forget(self, key: Hashable) -> None:
        """The next `get` starts it anew."""
        with self._lock:
            self._tasks.pop(key, None)

    def forget_errors(self) -> None:
        """Forget failed tasks, after a change of settings: the next `get` starts them anew."""
        with self._lock:
            self._tasks = {key: task for key, task in self._tasks.items() if not _has_failed(task)}


def _has_failed(task: Task) -> bool:
    """True also for a result that is a tuple in which one part has an error, such as a list of branches."""
    parts = task.result if isinstance(task.result, tuple) else ()
    return task.is_done and (task.error is not None or any(getattr(part, "error", None) for part in parts))
