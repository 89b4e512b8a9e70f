"""One job of quantizing as others see and steer it: from the download of its source to the finished checkpoint."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.checkpoint.vocabulary import num_tokens
from core.checkpoint.weight_files import ModelFiles
from core.common.errors import DeckError
from core.common.files import remove
from core.hub.download_job import DownloadJob, TokenFor
from core.hub.record import read_record
from core.hub.retry import TransferLimits
from core.hub.source import Source, folder_name
from core.quantize import folders
from core.quantize.answer import Check, EngineCheck, FirstWords
from core.quantize.calibration import check_calibration
from core.quantize.card import write_card
from core.quantize.job_file import JobFile, write_job
from core.quantize.last_failure import forget_failure, keep_failure, read_failure
from core.quantize.options import check_group_size, merge_steps
from core.quantize.plan import plan_job
from core.quantize.process import QuantizeProcess
from core.quantize.progress import Phase, QuantizeState, StageClock
from core.quantize.source import meta_model, plain_model, read_plain

log = logging.getLogger(__name__)
StartProcess = Callable[[Path, str], QuantizeProcess]
MakeCheck = Callable[[], Check]


class Stopped(Exception):
    """Somebody paused or cancelled the job."""


class QuantizeJob:
    """One job. Any thread may ask for a snapshot or stop it; one thread runs it."""

    def __init__(
        self,
        job: JobFile,
        source: Source | None = None,
        token_for: TokenFor = lambda endpoint: None,
        limits: TransferLimits | None = None,
        start: StartProcess = QuantizeProcess,
        make_check: MakeCheck = EngineCheck,
    ) -> None:
        self.file = job
        self.source = source
        self._token_for, self._limits, self._start = token_for, limits or TransferLimits(), start
        self._make_check = make_check
        self._lock = threading.RLock()
        self._inactive = threading.Event()
        self._phase: Phase = "queued"
        self._wanted: Phase | None = None
        self._clock = StageClock()
        self._process: QuantizeProcess | None = None
        self._check_running: Check | None = None
        self._download: DownloadJob | None = None
        self._error: DeckError | None = None
        self._result: dict[str, Any] | None = None
        self._left: tuple[folders.LeftFolder, ...] = ()
        self._resumes = False
        self._is_found = False

    @property
    def id(self) -> str:
        return self.file.name

    @property
    def name(self) -> str:
        """What it is made from, for people."""
        return self.file.repo or self.file.source.name

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def may_vanish(self) -> bool:
        """Whether the job rests, and another process may finish or remove it."""
        return self._phase == "paused" or (self._is_found and self._phase == "failed")

    @property
    def can_pause(self) -> bool:
        """Whether what is done is kept when the job is stopped: gptqmodel keeps it for some families alone."""
        return self._resumes or self._clock.stage == "download"

    @property
    def pid(self) -> int | None:
        """The process that works, while there is one."""
        with self._lock:
            return self._process.pid if self._process is not None else None

    def snapshot(self) -> QuantizeState:
        with self._lock:
            return QuantizeState(
                phase=self._phase,
                stage=self._clock.stage,
                fraction=1.0 if self._phase == "done" else self._clock.fraction,
                layer=self._clock.layer,
                layers=self._clock.layers,
                layer_s=self._clock.layer_s if self._phase == "running" else None,
                left_s=self._clock.left_s if self._phase == "running" else None,
                error=self._error,
                result=self._result if self._phase == "done" else None,
                download=self._download.snapshot() if self._download is not None else None,
                left=self._left if self._phase == "failed" else (),
            )

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing happens any more, at most `timeout_s`; whether that is so."""
        return self._inactive.wait(timeout_s)

    def stop(self, wanted: Phase) -> None:
        """Pause or cancel: `wanted` is "paused" or "cancelled". Work that runs ends soon after.

        A job that is cancelled leaves nothing. Raises DeckError where that cannot be removed.
        """
        with self._lock:
            is_at_work, check = self._phase in ("running", "stopping"), self._check_running
            if is_at_work:
                self._wanted, self._phase = wanted, "stopping"
                if self._process is not None:
                    self._process.kill()
                if self._download is not None:
                    self._download.stop("pause")
            elif wanted == "paused":
                if self._phase == "queued":
                    self._end("paused")
                return
            elif self._phase in ("done", "cancelled"):
                return
            else:
                # Its turn does not come any more.
                rested: Phase = "paused" if self._phase == "queued" else self._phase
                self._phase = "stopping"
        if is_at_work:
            # It waits for the engine's process.
            if check is not None:
                check.stop()
            return
        try:
            with folders.locked(self.id):
                self._discard()
        except DeckError:
            self._end(rested)
            raise
        self._end("cancelled")

    def requeue(self) -> None:
        """Let a job that rests wait for its turn again."""
        with self._lock:
            if self._phase in ("paused", "failed"):
                self._clock, self._error, self._wanted, self._download = StageClock(), None, None, None
                self._is_found = False
                self._inactive.clear()
                self._phase = "queued"

    def mark_found(self) -> None:
        """This job is another process's or an earlier one's, and nobody has asked this one for it yet."""
        self._is_found = True
        self._end("paused")
        self.look()

    def look(self) -> None:
        """Show a job that was found as its folder tells now: paused, or failed and why."""
        failure = read_failure(folders.job_folder(self.id))
        with self._lock:
            if not self._is_found or self._phase not in ("paused", "failed") or str(failure) == str(self._error):
                return
            if failure is not None:
                self._fail(failure)
            else:
                self._error = None
                self._end("paused")

    def run(self) -> None:
        """Do the work, from the source to models/. Every error becomes the job's state."""
        with self._lock:
            if self._phase != "queued":
                return
            self._phase = "running"
        try:
            with folders.locked(self.id):
                failure = self._try()
        except Stopped:
            self._end_stopped()
            return
        except DeckError as error:
            failure = error
        if failure is None:
            self._end("done")
        else:
            self._fail(failure)

    def _try(self) -> DeckError | None:
        """Do the work; why it failed. Raises Stopped."""
        try:
            self._work()
            return None
        except Stopped:
            raise
        except Exception as error:  # Whatever it is becomes a sentence on the page.
            return self._kept(error)

    def _work(self) -> None:
        folder = folders.job_folder(self.id)
        with folders.errors_explained(folder):
            forget_failure(folder)
        if self.source is not None:
            self._fetch(self.source)
        self._check()
        with folders.errors_explained(folder):
            write_job(folder, self.file)
            with self._lock:
                self._raise_if_stopped()
                self._process = self._start(folder, self.file.device)
        try:
            result = self._process.run(self._told)
        except DeckError:
            self._raise_if_stopped()
            raise
        finally:
            with self._lock:
                self._process = None
        self._raise_if_stopped()
        with folders.errors_explained(folder):
            # The engine's own judgement, as a load would have it.
            made = read_checkpoint(folder / "out")
            made.require_runs()
            result["num_tokens"] = num_tokens(made)
        result["first_words"] = self._ask(folder / "out", result["prompt"])
        self._raise_if_stopped()
        self._told({"stage": "place", "fraction": 0.0})
        with folders.errors_explained(folder):
            write_card(folder / "out", self.file, result)
            folders.place(self.id)
            self._result = result
            remove(folder)
            self._remove_source()

    def _ask(self, out: Path, prompt: str) -> FirstWords:
        """What the finished model says, which changes nothing about the rest."""
        with self._lock:
            self._raise_if_stopped()
            self._clock.take("answer", 0.0)
            check = self._check_running = self._make_check()
        try:
            return check.ask(out, self.id, prompt, self.file.device == "cpu")
        finally:
            with self._lock:
                self._check_running = None

    def _fetch(self, source: Source) -> None:
        """Fetch the source, or what of it is missing. Raises Stopped, DeckError."""
        download = DownloadJob(folders.sources_folder(), source, self._token_for, self._limits, find_plain)
        with self._lock:
            self._raise_if_stopped()
            self._download = download
            self._clock.take("download", 0.0)
        self.file = replace(self.file, source=folders.sources_folder() / folder_name(source))
        download.run()
        self._raise_if_stopped()
        if (error := download.snapshot().error) is not None:
            raise error

    def _check(self) -> None:
        """Whatever can be known beforehand is refused here. Raises DeckError."""
        self._clock.take("start", 0.0)
        folder, options = self.file.source, self.file.options
        model = meta_model(folder) if self.file.is_meta else read_plain(folder)
        merge_steps(model, options)
        if not self.file.is_meta:
            check_group_size(model, options)
        if options.calibration is not None:
            check_calibration(options.calibration, None if self.file.is_meta else folder)
        plan = plan_job(model, options, self.file.device, self.file.is_meta)
        self._resumes = plan.resumes
        folders.check_room(self.id, plan.disk_bytes)

    def _told(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._clock.take(**message)

    def _raise_if_stopped(self) -> None:
        if self._wanted is not None:
            raise Stopped

    def _end_stopped(self) -> None:
        wanted = self._wanted or "paused"
        try:
            if wanted == "cancelled":
                with folders.locked(self.id):
                    self._discard()
            self._end(wanted)
        except DeckError as error:
            self._fail(error)

    def _discard(self) -> None:
        with folders.errors_explained(folders.job_folder(self.id)):
            self._remove_source()
            remove(folders.job_folder(self.id))

    def _remove_source(self) -> None:
        """Remove what was fetched, unless another job is made of it too, such as one of other bits. Raises OSError."""
        if self.source is None:
            return
        name = folder_name(self.source)
        others = (read_record(folders.job_folder(one)) for one in folders.unfinished_jobs() if one != self.id)
        if not any(record is not None and folder_name(record.source) == name for record in others):
            folders.remove_source(folders.sources_folder() / name)

    def _kept(self, error: Exception) -> DeckError:
        """`error` as a sentence, which stands in the job's folder too. What is refused leaves nothing behind; once the
        process had begun, its half-made work stays."""
        if not isinstance(error, DeckError):
            log.error("quantizing %s", self.name, exc_info=error)
            error = DeckError("quantize_fault", model=self.name, why=f"{type(error).__name__}: {error}")
        folder = folders.job_folder(self.id)
        try:
            if (folder / folders.LOG).exists() or self.source is not None:
                keep_failure(folder, error)
            else:
                remove(folder)
        except OSError as another:
            log.warning("%s: %s", self.name, another)
        return error

    def _fail(self, error: DeckError) -> None:
        self._error = error
        self._left = folders.left_folders(self.id, self.source)
        self._end("failed")

    def _end(self, phase: Phase) -> None:
        with self._lock:
            self._phase, self._wanted = phase, None
            self._inactive.set()


def find_plain(files: ModelFiles) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """For a download of a model to quantize. Raises CheckpointError for one that cannot be."""
    return None, plain_model(files).files
