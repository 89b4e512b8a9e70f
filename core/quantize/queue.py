"""The queue of jobs of quantizing: one at a time. It outlives pages, restarts and kills."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from core.common.errors import CheckpointError, DeckError, InputError
from core.hub.download_job import TokenFor
from core.hub.job_queue import INACTIVE_PHASES, JobQueue
from core.hub.record import Record, read_record, write_record
from core.hub.source import Source
from core.hub.tokens import token_for as stored_token
from core.quantize import folders
from core.quantize.answer import EngineCheck
from core.quantize.job import MakeCheck, QuantizeJob, StartProcess
from core.quantize.job_file import JobFile, read_job, write_job
from core.quantize.options import QuantizeOptions, check_name, result_name
from core.quantize.process import QuantizeProcess
from core.quantize.target import Target
from core.quantize.uploads import sweep

log = logging.getLogger(__name__)
CLOSE_S = 10.0


class QuantizeQueue(JobQueue[QuantizeJob]):
    """All jobs of this process, and those that earlier ones left; see JobQueue."""

    def __init__(
        self,
        token_for: TokenFor = stored_token,
        start: StartProcess = QuantizeProcess,
        make_check: MakeCheck = EngineCheck,
    ) -> None:
        super().__init__("quantizing", CLOSE_S)
        self._token_for, self._start, self._make_check = token_for, start, make_check

    @property
    def is_busy(self) -> bool:
        """Whether a model is made, or waits for its turn, by this process or another one."""
        return self._has_active() or any(map(folders.is_locked, folders.unfinished_jobs()))

    def add(self, target: Target, options: QuantizeOptions, device: str, name: str = "") -> QuantizeJob:
        """Queue `target`; `name` is the result's folder. Raises InputError for names, DeckError for folders."""
        wanted = check_name(name or result_name(target.title, options))
        # A snapshot in Hugging Face's cache is a folder of links.
        folder = folders.sources_folder() if target.folder is None else target.folder.absolute()
        options = replace(options, adapters=tuple(path.absolute() for path in options.adapters))
        file = JobFile(wanted, folder, options, target.repo, target.is_meta, device)
        return self._add(file, target.source)

    def _add(self, file: JobFile, source: Source | None) -> QuantizeJob:
        with self._adding(file.name) as there:
            if there is not None and there.phase not in INACTIVE_PHASES:
                raise InputError("quantize_running", name=file.name)
            if folders.is_locked(file.name):
                raise DeckError("quantize_elsewhere", name=file.name)
            folder = folders.job_folder(file.name)
            with folders.errors_explained(folder):
                if not _is_same(folder, file):
                    # What is left there is of other settings.
                    folders.remove_job(file.name)
                folder.mkdir(parents=True, exist_ok=True)
                write_job(folder, file)
                if source is not None:
                    write_record(folder, Record(source))
            job = self._job(file, source)
            self._put(file.name, job)
            return job

    def cancel(self, job_id: str) -> None:
        """Stop the job and remove what it made. Raises DeckError where that cannot be removed."""
        if (job := self._find(job_id)) is not None:
            job.stop("cancelled")
            self._sweep()

    def forget(self, job_id: str) -> None:
        """Take a job off the list that is done, failed or cancelled; of a failed one what it made goes too."""
        job = self._find(job_id)
        if job is None or job.phase not in ("done", "failed", "cancelled"):
            return
        if job.phase == "failed":
            job.stop("cancelled")
        with self._changed:
            if self._jobs.get(job_id) is job:
                del self._jobs[job_id]
        self._sweep()

    def _may_vanish(self, job: QuantizeJob) -> bool:
        return job.may_vanish

    def _pause(self, job: QuantizeJob) -> None:
        job.stop("paused")

    def _run_one(self, job: QuantizeJob) -> None:
        job.run()
        self._sweep()

    def _job(self, file: JobFile, source: Source | None) -> QuantizeJob:
        return QuantizeJob(file, source, self._token_for, start=self._start, make_check=self._make_check)

    def _look(self, known: Collection[str]) -> tuple[set[str], dict[str, QuantizeJob]]:
        names, found = folders.unfinished_jobs(), {}
        resting = set(names)
        for name in names:
            there = self._find(name) if name in known else None
            if there is not None:
                there.look()
            if (there is None or there.may_vanish) and folders.is_locked(name):
                # Another process is at it, and shows how far it is.
                resting.discard(name)
                continue
            if name in known:
                continue
            try:
                file = read_job(folders.job_folder(name))
            except CheckpointError as error:
                log.warning("%s: %s", name, error)
                continue
            record = read_record(folders.job_folder(name))
            if file.name == name:
                job = found[name] = self._job(file, record.source if record else None)
                job.mark_found()
        return resting, found

    def _sweep(self) -> None:
        """Remove uploaded texts that no job needs any more."""
        sweep(job.file.options.calibration for job in self.jobs if job.phase not in ("done", "cancelled"))


def _is_same(folder: Path, file: JobFile) -> bool:
    try:
        there = read_job(folder)
        is_same_source = there.repo == file.repo and (bool(file.repo) or there.source == file.source)
        return is_same_source and there.options == file.options
    except CheckpointError:
        return False
