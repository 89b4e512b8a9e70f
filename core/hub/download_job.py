"""One model's download as others see and steer it: its phase, its progress, its end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from core.common.errors import DeckError
from core.hub.cancellation import Cancelled, CancelToken, Reason
from core.hub.folders import discard, has_bytes, locked, model_folders
from core.hub.manifest import FindWeights, find_adapter, find_runnable
from core.hub.model_download import ModelDownload
from core.hub.progress import FileProgress, JobState, Phase, Speed
from core.hub.record import read_record
from core.hub.retry import TransferLimits
from core.hub.source import Source

log = logging.getLogger(__name__)
# Phases in which a thread works for the job, and those that last until somebody asks for another.
ACTIVE_PHASES = ("looking", "running", "pausing", "checking")
TokenFor = Callable[[str], str | None]


def id_of(folder_name: str, is_adapter: bool) -> str:
    """The id of the job that fills this folder: a model and an adapter may be called alike."""
    return f"adapters/{folder_name}" if is_adapter else folder_name


class DownloadJob:
    """One download. Any thread may ask for a snapshot; what it shows as done is never taken back.

    Raises InputError where the model's folder belongs to another model.
    """

    def __init__(
        self,
        models: Path,
        source: Source,
        token_for: TokenFor,
        limits: TransferLimits,
        find_weights: FindWeights = find_runnable,
    ) -> None:
        self.source = source
        self._find_weights = find_weights
        self._folders = model_folders(models, source)
        self._token_for = token_for
        self._limits = limits
        self._lock = threading.RLock()
        self._inactive = threading.Event()
        self._cancel = CancelToken()
        self._speed = Speed()
        self._phase: Phase = "queued"
        self._error: DeckError | None = None
        self._notice: DeckError | None = None
        self._news: DeckError | None = None
        self._shown_bytes = 0
        record = read_record(self._folders.unfinished)
        self._files = tuple(FileProgress(file.name, file.size_bytes) for file in record.files) if record else ()
        for progress, file in zip(self._files, record.files if record else (), strict=True):
            progress.reached(self._folders.done_bytes(file))

    @property
    def id(self) -> str:
        return id_of(self.folder_name, self.is_adapter)

    @property
    def is_adapter(self) -> bool:
        """Whether a LoRA adapter is fetched, and no model."""
        return self._find_weights is find_adapter

    @property
    def folder_name(self) -> str:
        """The model's name under models/, or the adapter's under adapters/, when it is done."""
        return self._folders.name

    @property
    def phase(self) -> Phase:
        return self._phase

    def snapshot(self) -> JobState:
        with self._lock:
            files = tuple(progress.state for progress in self._files)
            total = sum(file.size_bytes for file in files)
            # Files can change at the hub, and then bytes that were there count no more.
            self._shown_bytes = min(max(self._shown_bytes, sum(file.done_bytes for file in files)), total)
            speed = self._speed.bytes_s() if self._phase == "running" else 0.0
            left_s = (total - self._shown_bytes) / speed if speed > 0 else None
            waits = (progress.notice for progress in self._files if self._phase == "running")
            notice = self._notice or next(filter(None, waits), self._news)
            return JobState(self._phase, files, self._shown_bytes, total, speed, left_s, self._error, notice)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing happens any more, at most `timeout_s`; whether that is so."""
        return self._inactive.wait(timeout_s)

    def stop(self, reason: Reason) -> None:
        """Pause or cancel. Work that runs ends soon after; what is fetched stays, or goes with a cancel.

        Raises DeckError where it cannot be removed, such as while another process fetches the same model.
        """
        with self._lock:
            before = self._phase
            if before in ACTIVE_PHASES:
                self._cancel.request(reason)
                self._phase = "pausing"
                return
            if reason == "pause" or before == "done":
                if before == "queued":
                    self._set_inactive("paused")
                return
            self._phase = "pausing"
        try:
            # Gigabytes take a while to be removed: whoever looks at the job does not wait for that.
            self._discard()
        except BaseException:
            with self._lock:
                self._phase = before
            raise
        self._set_inactive("cancelled")

    def requeue(self) -> None:
        """Let a job that rests wait for its turn again."""
        with self._lock:
            if self._phase in ("paused", "failed", "cancelled"):
                self._cancel, self._speed = CancelToken(), Speed()
                self._error = self._notice = None
                self._inactive.clear()
                self._phase = "queued"

    def mark_paused(self) -> None:
        """Show a job of an earlier process, which nobody has asked for yet in this one."""
        self._set_inactive("paused")

    def run(self) -> None:
        """Do the work, from the manifest to the finished folder. Every error becomes the job's state."""
        with self._lock:
            if self._phase != "queued":
                return
            self._phase = "looking"
        try:
            with locked(self._folders):
                self._fetch()
            self._set_inactive("done")
        except Cancelled:
            self._end_stopped()
        except DeckError as error:
            self._fail(error)
        except Exception as error:  # Whatever it is becomes a sentence on the page.
            log.exception("download of %s", self.source.name)
            self._fail(self._fault(error))

    def mark_failed(self, error: Exception) -> None:
        """Mark the job as failed after run() itself raised; fetched files stay."""
        self._error = self._fault(error)
        self._set_inactive("failed")

    def on_phase(self, phase: Phase) -> None:
        with self._lock:
            if self._phase != "pausing":
                self._phase = phase

    def on_files(self, files: tuple[FileProgress, ...]) -> None:
        with self._lock:
            self._files = files

    def on_notice(self, notice: DeckError | None) -> None:
        self._notice = notice

    def on_news(self, news: DeckError) -> None:
        self._news = news

    def _fetch(self) -> None:
        token = self._token_for(self.source.endpoint)
        ModelDownload(
            self.source, self._folders, token, self._limits, self._cancel, self._speed, self, self._find_weights
        ).run()

    def _fault(self, error: Exception) -> DeckError:
        return DeckError("download_fault", model=self.source.name, why=f"{type(error).__name__}: {error}")

    def _end_stopped(self) -> None:
        try:
            if self._cancel.reason == "cancel":
                self._discard()
                self._set_inactive("cancelled")
            else:
                self._set_inactive("paused")
        except DeckError as error:
            self._fail(error)

    def _fail(self, error: DeckError) -> None:
        """A model that was refused before a byte of it was kept leaves nothing behind."""
        self._error = error
        try:
            if not has_bytes(self._folders):
                self._discard()
        except DeckError as another:
            log.warning("%s: %s", self.source.name, another)
        self._set_inactive("failed")

    def _discard(self) -> None:
        with locked(self._folders):
            discard(self._folders)

    def _set_inactive(self, phase: Phase) -> None:
        with self._lock:
            self._phase = phase
            self._notice = None
            self._inactive.set()
