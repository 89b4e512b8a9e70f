"""The work of one download, from the manifest to the finished folder."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import Protocol

from core.common.errors import DeckError
from core.hub.cancellation import Cancelled, CancelToken
from core.hub.file_download import FileDownload
from core.hub.folders import ModelFolders, begin, check_room, finish, is_whole, os_errors_explained
from core.hub.hashing import is_right_file
from core.hub.manifest import FindWeights, Manifest, find_runnable, read_manifest
from core.hub.progress import FileProgress, Phase, Speed
from core.hub.record import Record, read_record
from core.hub.retry import RetryPolicy, TransferLimits, TransientError, waiting_notice
from core.hub.source import RemoteFile, Source
from core.hub.transport import Transport

NUM_CONNECTIONS = 4
# What a server says when the commit that is fetched is no more, or its files are others than it listed.
MAY_HAVE_CHANGED = ("unknown_branch", "hub_unknown_repo", "hub_failed", "hub_range", "download_wrong")


class DownloadListener(Protocol):
    """Is told how a download goes, from any of its threads."""

    def on_phase(self, phase: Phase) -> None: ...

    def on_files(self, files: tuple[FileProgress, ...]) -> None: ...

    def on_notice(self, notice: DeckError | None) -> None:
        """A wait begins, or is over."""

    def on_news(self, news: DeckError) -> None:
        """Something that stays true to the end."""


class ModelDownload:
    """One attempt at one model. run() raises Cancelled, or DeckError with what a person should know."""

    def __init__(
        self,
        source: Source,
        folders: ModelFolders,
        token: str | None,
        limits: TransferLimits,
        cancel: CancelToken,
        speed: Speed,
        listener: DownloadListener,
        find_weights: FindWeights = find_runnable,
    ) -> None:
        self._source = source
        self._folders = folders
        self._token = token
        self._limits = limits
        self._cancel = cancel
        self._speed = speed
        self._listener = listener
        self._find_weights = find_weights

    def run(self) -> None:
        manifest = self._read_manifest()
        while True:
            try:
                record = self._fetch(manifest)
                break
            except DeckError as error:
                if error.key not in MAY_HAVE_CHANGED or isinstance(error, TransientError):
                    raise
                again = self._read_manifest()
                if (again.commit, again.files) == (manifest.commit, manifest.files):
                    raise
                manifest = again
        self._listener.on_phase("checking")
        finish(self._folders, record)

    def _read_manifest(self) -> Manifest:
        """What the model is made of now; waits and asks again while the hub cannot be asked."""
        self._listener.on_phase("looking")
        retries = RetryPolicy(self._limits, self._limits.manifest_tries, self._wait)
        while True:
            self._cancel.raise_if_cancelled()
            try:
                return read_manifest(self._source, self._token, self._find_weights)
            except TransientError as error:
                retries.record_failure(error)

    def _wait(self, error: TransientError, seconds: float) -> None:
        self._listener.on_notice(waiting_notice(error, seconds))
        self._cancel.wait(seconds)
        self._listener.on_notice(None)

    def _fetch(self, manifest: Manifest) -> Record:
        """Fetch what is missing of `manifest`; afterwards all of it lies whole in the model's two folders."""
        record = Record(self._source, manifest.commit, manifest.files)
        finished = read_record(self._folders.finished)
        if begin(self._folders, record) or (finished is not None and finished.commit != manifest.commit):
            self._listener.on_news(DeckError("download_changed", model=self._source.name))
        progress = {file: FileProgress(file.name, file.size_bytes) for file in manifest.files}
        for file, shown in progress.items():
            shown.reached(self._folders.done_bytes(file))
        self._listener.on_files(tuple(progress.values()))
        missing = [file for file in manifest.files if not self._is_there(file, progress[file])]
        with os_errors_explained(self._folders.models):
            check_room(self._folders.models, sum(file.size_bytes - self._folders.done_bytes(file) for file in missing))
        self._listener.on_phase("running")
        transport = Transport(manifest.repository, self._source.endpoint, self._token, self._limits)
        try:
            self._fetch_all(transport, missing, progress)
        finally:
            transport.close()
        return record

    def _is_there(self, file: RemoteFile, progress: FileProgress) -> bool:
        """Whether the finished folder has the file already, which its bytes tell."""
        path = self._folders.finished / file.name
        with os_errors_explained(path):
            if is_whole(self._folders.whole(file), file):
                return False
            if is_whole(path, file):
                self._listener.on_phase("checking")
                progress.phase = "checking"
            if not is_right_file(path, file, lambda _: self._cancel.raise_if_cancelled()):
                progress.phase = "waiting"
                return False
        progress.finished()
        return True

    def _fetch_all(
        self, transport: Transport, files: Sequence[RemoteFile], progress: dict[RemoteFile, FileProgress]
    ) -> None:
        """Several files at once, in threads that do not keep a process from ending. Where one fails the others stop."""
        cancel = CancelToken()
        fetcher = FileDownload(self._folders, transport, self._limits, cancel, self._speed)
        waiting: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
        for file in files:
            waiting.put(file)
        errors: list[BaseException] = []

        def work() -> None:
            try:
                while True:
                    file = waiting.get_nowait()
                    fetcher.fetch(file, progress[file])
            except queue.Empty:
                return
            except BaseException as error:  # The thread's edge: it is raised below.
                errors.append(error)
                cancel.request("pause")

        threads = [threading.Thread(target=work, name="download", daemon=True) for _ in files[:NUM_CONNECTIONS]]
        with self._cancel.on_cancel(lambda: cancel.request("pause")):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if errors:
            raise next((error for error in errors if not isinstance(error, Cancelled)), errors[0])
