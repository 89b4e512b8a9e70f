"""One file's download: it goes on where the file's part ends, until the whole file has the right hash.

Appends chunks of at most 256 KiB, each written before the next is read. A kill loses at most one chunk: written bytes
belong to the operating system. A reboot can lose what was not flushed; the hash thread flushes every 64 MiB.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from core.common.errors import DeckError
from core.hub.cancellation import CancelToken
from core.hub.folders import ModelFolders, check_room, is_whole, os_errors_explained
from core.hub.hashing import SYNC_BYTES, Hasher
from core.hub.progress import FileProgress, Speed
from core.hub.retry import RetryPolicy, TransferLimits, TransientError, waiting_notice
from core.hub.source import RemoteFile
from core.hub.transport import Transport

# Fewer new bytes count as no progress: a server could send a few and hang up, for ever.
PROGRESS_BYTES = 64 * 1024
# A file with the wrong hash is fetched once more.
MAX_WRONG = 2


class FileDownload:
    """Downloads files of one model over one transport. Several threads may use it, each for another file."""

    def __init__(
        self, folders: ModelFolders, transport: Transport, limits: TransferLimits, cancel: CancelToken, speed: Speed
    ) -> None:
        self._folders = folders
        self._transport = transport
        self._limits = limits
        self._cancel = cancel
        self._speed = speed

    def fetch(self, file: RemoteFile, progress: FileProgress) -> None:
        """Fetch what is missing of `file`; afterwards it lies whole in the unfinished folder.

        Raises Cancelled, and DeckError where the disk, the network or the server does not allow it; the part is kept.
        """
        part, whole = self._folders.part(file), self._folders.whole(file)
        with os_errors_explained(self._folders.unfinished):
            if not is_whole(whole, file):
                for _ in range(MAX_WRONG):
                    if self._fetch_part(part, file, progress):
                        break
                    part.unlink()
                else:
                    raise DeckError("download_wrong", file=file.name, host=self._transport.host)
                os.rename(part, whole)
        progress.finished()

    def _fetch_part(self, part: Path, file: RemoteFile, progress: FileProgress) -> bool:
        """Append until the part has the file's size; whether its bytes are right."""
        progress.phase = "running"
        with open_part(part) as descriptor:
            hasher = Hasher(descriptor, file)
            try:
                self._append(descriptor, file, progress, hasher)
                progress.phase = "checking"
                return hasher.is_right(self._cancel)
            finally:
                hasher.abandon()

    def _append(self, descriptor: int, file: RemoteFile, progress: FileProgress, hasher: Hasher) -> None:
        have = os.fstat(descriptor).st_size
        if have > file.size_bytes:
            os.ftruncate(descriptor, 0)
            have = 0
        retries = RetryPolicy(self._limits, self._limits.tries, partial(self._wait, progress))
        while True:
            hasher.available(have)
            progress.reached(have)
            if have == file.size_bytes:
                return
            began_at = have
            try:
                with self._transport.read(file, have, self._cancel) as chunks:
                    for chunk in chunks:
                        have += self._write(descriptor, have, chunk[: file.size_bytes - have])
                        hasher.available(have)
                        progress.reached(have)
                        progress.notice = None
                        if have == file.size_bytes:
                            break
                    else:
                        raise TransientError("hub_cut", host=self._transport.host)
            except TransientError as error:
                if have - began_at >= PROGRESS_BYTES:
                    retries.record_progress()
                retries.record_failure(error)

    def _write(self, descriptor: int, at: int, chunk: bytes) -> int:
        """Write all of `chunk`; returns its length. Looks now and then whether the disk is about to be full."""
        if at // SYNC_BYTES != (at + len(chunk)) // SYNC_BYTES:
            check_room(self._folders.models, len(chunk))
        left = memoryview(chunk)
        while left:
            left = left[os.pwrite(descriptor, left, at + len(chunk) - len(left)) :]
        self._speed.count(len(chunk))
        return len(chunk)

    def _wait(self, progress: FileProgress, error: TransientError, seconds: float) -> None:
        progress.notice = waiting_notice(error, seconds)
        self._cancel.wait(seconds)


@contextmanager
def open_part(part: Path) -> Iterator[int]:
    """The part to read and append to, made where it is missing; what is no plain file of ours is not followed."""
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
