"""A queue of jobs that each take long: one at a time, on a thread of its own, in the order of adding."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
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
        # What is written down right now to be put on the list.
        self._being_added: set[str] = set()
        # Taken off the list by hand; what is left of it on disk does not bring it back.
        self._forgotten: set[str] = set()
        self._thread: threading.Thread | None = None
        self._closed = False

    @abstractmethod
    def _look(self, known: Collection[str]) -> tuple[set[str], dict[str, AnyJob]]:
        """What lies unfinished on disk: the ids of all of it, and paused jobs of what nobody works at and is not among
        `known`; those may be looked at again. Without the lock."""

    def _may_vanish(self, job: AnyJob) -> bool:
        """Whether a job rests, and another process may finish or remove it."""
        return job.phase == "paused"

    @abstractmethod
    def _pause(self, job: AnyJob) -> None: ...

    def _run_one(self, job: AnyJob) -> None:
        """Run a job. What it raises ends the queue's thread."""
        job.run()

    @property
    def jobs(self) -> tuple[AnyJob, ...]:
        """In the order of adding. What other processes left unfinished is there too, paused."""
        with self._changed:
            known = set(self._jobs)
            resting = {job_id for job_id, job in self._jobs.items() if self._may_vanish(job)}
        there, found = self._look(known)
        with self._changed:
            # Another process has finished or removed these.
            for job_id in resting - there:
                if job_id in self._jobs and self._may_vanish(self._jobs[job_id]):
                    del self._jobs[job_id]
            for job_id, job in found.items():
                if job_id not in self._jobs | dict.fromkeys(self._being_added | self._forgotten):
                    self._jobs[job_id] = job
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
            jobs = tuple(self._jobs.values())
            self._changed.notify_all()
            thread = self._thread
        for job in jobs:
            self._pause(job)
        if thread is not None:
            thread.join(self._close_s)

    def _has_active(self) -> bool:
        with self._changed:
            return any(job.phase not in INACTIVE_PHASES for job in self._jobs.values())

    def _find(self, job_id: str) -> AnyJob | None:
        with self._changed:
            return self._jobs.get(job_id)

    @contextmanager
    def _adding(self, job_id: str) -> Iterator[AnyJob | None]:
        """Inside the `with` block nobody else adds this job; the one that is on the list. The lock is not held."""
        with self._changed:
            self._changed.wait_for(lambda: job_id not in self._being_added)
            self._being_added.add(job_id)
            there = self._jobs.get(job_id)
        try:
            yield there
        finally:
            with self._changed:
                self._being_added.discard(job_id)
                self._changed.notify_all()

    def _put(self, job_id: str, job: AnyJob) -> None:
        """Put `job` behind all others."""
        with self._changed:
            self._jobs.pop(job_id, None)
            self._forgotten.discard(job_id)
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
