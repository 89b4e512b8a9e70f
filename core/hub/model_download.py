"""The work of one download, from the list of files to the finished folder; knows not who watches it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import Protocol

from core.common.errors import DeckError
from core.hub.cancellation import Stop, Stopped
from core.hub.file_download import PartFetcher
from core.hub.folders import Place, begin, check_room, finish, is_whole, os_errors_explained
from core.hub.hashing import is_right_file
from core.hub.manifest import Found, look
from core.hub.progress import FileProgress, Phase, Speed
from core.hub.record import Record, read_record
from core.hub.retry import Limits, PassingError, Patience, waiting_notice
from core.hub.source import RemoteFile, Source
from core.hub.transport import Transport

NUM_CONNECTIONS = 4
# What a server says when the commit that is fetched is no more, or its files are others than it listed.
MAY_HAVE_CHANGED = ("unknown_branch", "hub_unknown_repo", "hub_failed", "hub_range", "download_wrong")


class Watcher(Protocol):
    """Who is told how a download goes, from any of its threads."""

    def on_phase(self, phase: Phase) -> None: ...

    def on_files(self, files: tuple[FileProgress, ...]) -> None: ...

    def on_notice(self, notice: DeckError | None) -> None:
        """A wait begins, or is over."""

    def on_news(self, news: DeckError) -> None:
        """Something that stays true to the end."""


class Fetch:
    """One attempt at one model. run() raises Stopped, or DeckError with what a person should know."""

    def __init__(
        self,
        source: Source,
        place: Place,
        token: str | None,
        limits: Limits,
        stop: Stop,
        speed: Speed,
        watcher: Watcher,
    ) -> None:
        self._source = source
        self._place = place
        self._token = token
        self._limits = limits
        self._stop = stop
        self._speed = speed
        self._watcher = watcher

    def run(self) -> None:
        found = self._look()
        while True:
            try:
                record = self._fetch(found)
                break
            except DeckError as error:
                if error.key not in MAY_HAVE_CHANGED or isinstance(error, PassingError):
                    raise
                again = self._look()
                if (again.commit, again.files) == (found.commit, found.files):
                    raise
                found = again
        self._watcher.on_phase("checking")
        finish(self._place, record)

    def _look(self) -> Found:
        """What the model is made of now."""
        self._watcher.on_phase("looking")
        patience = Patience(self._limits, self._limits.look_tries, self._wait)
        while True:
            self._stop.check()
            try:
                return look(self._source, self._token)
            except PassingError as error:
                patience.failed(error)

    def _wait(self, error: PassingError, seconds: float) -> None:
        self._watcher.on_notice(waiting_notice(error, seconds))
        self._stop.wait(seconds)
        self._watcher.on_notice(None)

    def _fetch(self, found: Found) -> Record:
        """Fetch what is missing of `found`; afterwards all of it lies whole in the place's two folders."""
        record = Record(self._source, found.commit, found.files)
        finished = read_record(self._place.finished)
        if begin(self._place, record) or (finished is not None and finished.commit != found.commit):
            self._watcher.on_news(DeckError("download_changed", model=self._source.name))
        progress = {file: FileProgress(file.name, file.size_bytes) for file in found.files}
        for file, shown in progress.items():
            shown.reached(self._place.done_bytes(file))
        self._watcher.on_files(tuple(progress.values()))
        missing = [file for file in found.files if not self._is_there(file, progress[file])]
        with os_errors_explained(self._place.models):
            check_room(self._place.models, sum(file.size_bytes - self._place.done_bytes(file) for file in missing))
        self._watcher.on_phase("running")
        transport = Transport(found.repository, self._source.endpoint, self._token, self._limits)
        try:
            self._fetch_all(transport, missing, progress)
        finally:
            transport.close()
        return record

    def _is_there(self, file: RemoteFile, progress: FileProgress) -> bool:
        """Whether the finished folder has the file already, which its bytes tell."""
        path = self._place.finished / file.name
        with os_errors_explained(path):
            if is_whole(self._place.whole(file), file):
                return False
            if is_whole(path, file):
                self._watcher.on_phase("checking")
                progress.phase = "checking"
            if not is_right_file(path, file, lambda _: self._stop.check()):
                progress.phase = "waiting"
                return False
        progress.finished()
        return True

    def _fetch_all(
        self, transport: Transport, files: Sequence[RemoteFile], progress: dict[RemoteFile, FileProgress]
    ) -> None:
        """Several files at once, in threads that do not keep a process from ending. Where one fails the others stop."""
        stop = Stop()
        fetcher = PartFetcher(self._place, transport, self._limits, stop, self._speed)
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
                stop.request("pause")

        threads = [threading.Thread(target=work, name="download", daemon=True) for _ in files[:NUM_CONNECTIONS]]
        with self._stop.hanging_up(lambda: stop.request("pause")):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if errors:
            raise next((error for error in errors if not isinstance(error, Stopped)), errors[0])
