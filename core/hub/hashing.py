"""Checks a file's hash in a thread of its own, which reads from disk behind the thread that writes.

A part's length says where a resume goes on; its bytes are trusted only when the whole file's hash is right. The hash
begins at byte 0 also after a resume: hashlib cannot save its state, and hashes of our own pieces would not be the
hub's. The network goes on at the part's end meanwhile, so a resume of 35 GB starts at once and the hash catches up at
the disk's speed.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from core.common.files import regular_size
from core.hub.cancellation import CancelToken
from core.hub.source import RemoteFile

BLOCK_BYTES = 1 << 20
# How much a reboot can take from a part; a killed process takes nothing that was written.
SYNC_BYTES = 64 << 20
POLL_S = 0.05


class Hasher:
    """Hashes the file behind `descriptor` as far as `available` says, and flushes what it has hashed to the disk."""

    def __init__(self, descriptor: int, file: RemoteFile) -> None:
        self._descriptor = descriptor
        self._file = file
        self._available = self._wanted = 0
        self._changed = threading.Condition()
        self._ends = False
        self._right: bool | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
        self._thread.start()

    def available(self, size: int) -> None:
        """The file has its first `size` bytes."""
        with self._changed:
            self._available = size
            if size >= self._wanted:
                self._changed.notify()

    def is_right(self, cancel: CancelToken) -> bool:
        """Wait until the whole file is hashed and flushed. Raises OSError where it cannot be read, and Cancelled."""
        while self._thread.is_alive():
            self._thread.join(POLL_S)
            cancel.raise_if_cancelled()
        if self._error is not None:
            raise self._error
        return self._right is True

    def abandon(self) -> None:
        """End without a result; the descriptor is not used any more when this returns."""
        with self._changed:
            self._ends = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        done = synced = 0
        try:
            digest, buffer = new_digest(self._file), memoryview(bytearray(BLOCK_BYTES))
            while done < self._file.size_bytes:
                count = os.preadv(self._descriptor, [buffer[: self._wait_for_more(done)]], done)
                if not count:
                    return
                digest.update(buffer[:count])
                done += count
                if done - synced >= SYNC_BYTES:
                    os.fdatasync(self._descriptor)
                    synced = done
            os.fsync(self._descriptor)
            self._right = is_digest(self._file, digest)
        except Exception as error:  # The thread's edge: is_right() raises it.
            self._error = error

    def _wait_for_more(self, done: int) -> int:
        """How many bytes to read from `done` on: a block, or the file's rest; 0 at the end.

        Waiting for less would wake this thread for every piece that the network brings.
        """
        with self._changed:
            self._wanted = min(done + BLOCK_BYTES, self._file.size_bytes)
            self._changed.wait_for(lambda: self._ends or self._available >= self._wanted)
            return 0 if self._ends else self._wanted - done


def new_digest(file: RemoteFile) -> hashlib._Hash:
    """The hash that the hub gives for `file`, before its first byte; git's begins with the size."""
    if file.sha256 is not None:
        return hashlib.sha256()
    return hashlib.sha1(f"blob {file.size_bytes}\0".encode(), usedforsecurity=False)


def is_digest(file: RemoteFile, digest: hashlib._Hash) -> bool:
    """Whether `digest` is what the hub gave; where it gave none, the size has to do."""
    expected = file.sha256 or file.git_sha1
    return expected is None or digest.hexdigest() == expected


def is_right_file(path: Path, file: RemoteFile, report: Callable[[int], None]) -> bool:
    """Whether the file at `path` has the size and the bytes of `file`. `report` gets the bytes that were read.

    Raises OSError where it cannot be read.
    """
    try:
        if regular_size(path) != file.size_bytes:
            return False
    except FileNotFoundError:
        return False
    with path.open("rb", buffering=0) as opened:
        digest, buffer, done = new_digest(file), memoryview(bytearray(BLOCK_BYTES)), 0
        while count := opened.readinto(buffer):
            digest.update(buffer[:count])
            done += count
            report(done)
    return done == file.size_bytes and is_digest(file, digest)
