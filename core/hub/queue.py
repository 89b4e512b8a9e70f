"""The queue of downloads: one model at a time. It outlives pages, restarts and kills."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from core.common.errors import InputError
from core.common.paths import models_dir
from core.hub.download_job import INACTIVE_PHASES, DownloadJob, TokenFor
from core.hub.endpoints import checked_endpoint
from core.hub.folders import is_locked, model_folders, remember, unfinished_models
from core.hub.manifest import FindWeights, find_runnable
from core.hub.record import read_record
from core.hub.retry import TransferLimits
from core.hub.source import Source, folder_name
from core.hub.tokens import token_for as stored_token

log = logging.getLogger(__name__)
CLOSE_S = 5.0


class DownloadQueue:
    """All downloads of this process, and those that earlier ones left. Any thread may call it.

    Methods that take a job's id do nothing for one that is not there: another tab may have taken it off the list.
    """

    def __init__(
        self,
        models: Path | None = None,
        token_for: TokenFor = stored_token,
        limits: TransferLimits | None = None,
        find_weights: FindWeights = find_runnable,
    ) -> None:
        """`find_weights` judges what is fetched: by default, models that run here."""
        self._find_weights = find_weights
        self._models = models or models_dir()
        self._token_for = token_for
        self._limits = limits or TransferLimits()
        self._changed = threading.Condition(threading.RLock())
        self._jobs: dict[str, DownloadJob] = {}
        self._forgotten: set[str] = set()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def jobs(self) -> tuple[DownloadJob, ...]:
        """In the order of adding. What other processes left unfinished is there too, paused."""
        with self._changed:
            self._find_unfinished()
            return tuple(self._jobs.values())

    @property
    def is_busy(self) -> bool:
        """Whether something is fetched, or waits for its turn, by this process or another one."""
        with self._changed:
            if any(job.phase not in INACTIVE_PHASES for job in self._jobs.values()):
                return True
        return any(map(is_locked, unfinished_models(self._models)))

    def add(self, source: Source) -> DownloadJob:
        """Queue a model; one that is queued or running already is that job.

        Raises InputError for names that are none, or where its folder belongs to another model; DeckError where
        models/ cannot be written.
        """
        checked_endpoint(source.endpoint)
        name = folder_name(source)
        with self._changed:
            there = self._jobs.get(name)
            if there is not None and there.phase not in INACTIVE_PHASES:
                if not there.source.is_same_model(source):
                    raise InputError("download_other", folder=name, model=source.name, other=there.source.name)
                return there
            job = DownloadJob(self._models, source, self._token_for, self._limits, self._find_weights)
            remember(model_folders(self._models, source), source)
            self._jobs.pop(name, None)
            self._jobs[name] = job
            self._wake()
            return job

    def pause(self, job_id: str) -> None:
        with self._changed:
            if job_id in self._jobs:
                self._jobs[job_id].stop("pause")

    def resume(self, job_id: str) -> None:
        with self._changed:
            if job_id in self._jobs:
                self._jobs[job_id].requeue()
                self._wake()

    def cancel(self, job_id: str) -> None:
        """Stop the job and remove what was fetched. Raises DeckError where that cannot be removed."""
        with self._changed:
            job = self._jobs.get(job_id)
        if job is None:
            return
        try:
            job.stop("cancel")
        finally:
            with self._changed:
                # What cannot be removed waits for its turn again.
                self._changed.notify_all()

    def forget(self, job_id: str) -> None:
        """Take a job off the list that is done, failed or cancelled. What a failed one fetched stays on disk."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is not None and job.phase in INACTIVE_PHASES and job.phase != "paused":
                del self._jobs[job_id]
                self._forgotten.add(job_id)

    def close(self) -> None:
        """Pause all, at the end of the process."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.stop("pause")
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(CLOSE_S)

    def _wake(self) -> None:
        """Let the queue's thread, which the first job starts, look for work."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="downloads", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                job.run()
            except Exception as error:  # The thread's edge: the queue goes on with the next model.
                log.exception("download of %s", job.source.name)
                job.mark_failed(error)

    def _next(self) -> DownloadJob | None:
        """The first job that waits for its turn; None when all is to end."""
        with self._changed:
            while not self._closed:
                for job in self._jobs.values():
                    if job.phase == "queued":
                        return job
                self._changed.wait()
            return None

    def _find_unfinished(self) -> None:
        unfinished = {folders.name: folders for folders in unfinished_models(self._models)}
        gone = [name for name, job in self._jobs.items() if job.phase == "paused" and name not in unfinished]
        for name in gone:  # Another process has finished or removed it.
            del self._jobs[name]
        for name, folders in unfinished.items():
            if name in self._jobs or name in self._forgotten or is_locked(folders):
                continue
            record = read_record(folders.unfinished)
            if record is not None and folder_name(record.source) == name:
                job = DownloadJob(self._models, record.source, self._token_for, self._limits)
                job.mark_paused()
                self._jobs[name] = job
