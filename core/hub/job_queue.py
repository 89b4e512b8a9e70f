"""A queue of jobs that each take long: one at a time, on a thread of its own, in the order of adding."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar

INACTIVE_PHASES = ("paused", "done", "failed", "cancelled")


class QueuedJob(Protocol):
    @property
    def phase(self) -> str: ...

    def run(self) -> None: ...

    def requeue(self) -> None: ...


AnyJob = TypeVar("AnyJob", bound=QueuedJob)


class JobQueue(ABC, Generic[AnyJob]):
    """All jobs of one kind of this process, and those that earlier ones left. Any thread may call it.

    Methods that take a job's id do nothing for one that is not there: another tab may have taken it off the list.
    """

    def __init__(self, thread_name: str, close_s: float) -> None:
        self._thread_name, self._close_s = thread_name, close_s
        self._changed = threading.Condition(threading.RLock())
        self._jobs: dict[str, AnyJob] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    @abstractmethod
    def _find_unfinished(self) -> None:
        """Bring the list up to date with what other processes left unfinished, or finished."""

    @abstractmethod
    def _pause(self, job: AnyJob) -> None: ...

    def _run_one(self, job: AnyJob) -> None:
        """Run a job. What it raises ends the queue's thread."""
        job.run()

    @property
    def jobs(self) -> tuple[AnyJob, ...]:
        """In the order of adding. What other processes left unfinished is there too, paused."""
        with self._changed:
            self._find_unfinished()
            return tuple(self._jobs.values())

    def pause(self, job_id: str) -> None:
        if (job := self._find(job_id)) is not None:
            self._pause(job)

    def resume(self, job_id: str) -> None:
        with self._changed:
            if job_id in self._jobs:
                self._jobs[job_id].requeue()
                self._wake()

    def close(self) -> None:
        """Pause all, at the end of the process."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                self._pause(job)
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(self._close_s)

    def _has_active(self) -> bool:
        with self._changed:
            return any(job.phase not in INACTIVE_PHASES for job in self._jobs.values())

    def _find(self, job_id: str) -> AnyJob | None:
        with self._changed:
            return self._jobs.get(job_id)

    def _put(self, job_id: str, job: AnyJob) -> None:
        """Put `job` behind all others. The lock is held."""
        self._jobs.pop(job_id, None)
        self._jobs[job_id] = job
        self._wake()

    def _wake(self) -> None:
        """Let the queue's thread, which the first job starts, look for work."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._thread_name, daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            self._run_one(job)

    def _next(self) -> AnyJob | None:
        """The first job that waits for its turn; None when all is to end."""
        with self._changed:
            while not self._closed:
                for job in self._jobs.values():
                    if job.phase == "queued":
                        return job
                self._changed.wait()
            return None
