"""The queue of downloads: one model or adapter at a time. It outlives pages, restarts and kills."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from core.common.errors import InputError
from core.common.paths import adapters_dir, models_dir
from core.hub.download_job import DownloadJob, TokenFor, id_of
from core.hub.endpoints import checked_endpoint
from core.hub.folders import is_fetching, is_locked, model_folders, remember, unfinished_models
from core.hub.job_queue import INACTIVE_PHASES, JobQueue
from core.hub.manifest import find_adapter, find_runnable
from core.hub.record import read_record
from core.hub.retry import TransferLimits
from core.hub.source import Source, folder_name
from core.hub.tokens import token_for as stored_token

log = logging.getLogger(__name__)
CLOSE_S = 5.0


class DownloadQueue(JobQueue[DownloadJob]):
    """All downloads of this process, and those that earlier ones left; see JobQueue."""

    def __init__(
        self,
        models: Path | None = None,
        token_for: TokenFor = stored_token,
        limits: TransferLimits | None = None,
    ) -> None:
        """Models that run here are fetched into `models`, LoRA adapters into adapters/ beside it."""
        super().__init__("downloads", CLOSE_S)
        self._models = models or models_dir()
        self._adapters = adapters_dir() if models is None else models.parent / "adapters"
        self._token_for = token_for
        self._limits = limits or TransferLimits()

    @property
    def is_busy(self) -> bool:
        """Whether something is fetched, or waits for its turn, by this process or another one."""
        return self._has_active() or is_fetching(self._models) or is_fetching(self._adapters)

    def add(self, source: Source, is_adapter: bool = False) -> DownloadJob:
        """Queue a model, or an adapter; one that is queued or running already is that job.

        Raises InputError for names that are none, or where its folder belongs to another model; DeckError where that
        cannot be written.
        """
        checked_endpoint(source.endpoint)
        name = folder_name(source)
        with self._adding(id_of(name, is_adapter)) as there:
            if there is not None and there.phase not in INACTIVE_PHASES:
                if not there.source.is_same_model(source):
                    raise InputError("download_other", folder=name, model=source.name, other=there.source.name)
                return there
            job = self._job(source, is_adapter)
            remember(model_folders(self._base(is_adapter), source), source)
            self._put(job.id, job)
            return job

    def cancel(self, job_id: str) -> None:
        """Stop the job and remove what was fetched. Raises DeckError where that cannot be removed."""
        if (job := self._find(job_id)) is None:
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

    def _pause(self, job: DownloadJob) -> None:
        job.stop("pause")

    def _run_one(self, job: DownloadJob) -> None:
        try:
            job.run()
        except Exception as error:  # The thread's edge: the queue goes on with the next model.
            log.exception("download of %s", job.source.name)
            job.mark_failed(error)

    def _base(self, is_adapter: bool) -> Path:
        return self._adapters if is_adapter else self._models

    def _job(self, source: Source, is_adapter: bool) -> DownloadJob:
        find_weights = find_adapter if is_adapter else find_runnable
        return DownloadJob(self._base(is_adapter), source, self._token_for, self._limits, find_weights)

    def _look(self, known: Collection[str]) -> tuple[set[str], dict[str, DownloadJob]]:
        unfinished = {
            id_of(folders.name, is_adapter): (folders, is_adapter)
            for is_adapter in (False, True)
            for folders in unfinished_models(self._base(is_adapter))
        }
        found = {}
        for name, (folders, is_adapter) in unfinished.items():
            if name in known or is_locked(folders):
                continue
            record = read_record(folders.unfinished)
            if record is not None and folder_name(record.source) == folders.name:
                job = found[name] = self._job(record.source, is_adapter)
                job.mark_paused()
        return set(unfinished), found
