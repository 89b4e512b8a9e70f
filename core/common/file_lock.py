"""A lock on a file between threads and processes, also where the file system has no locks."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
from pathlib import Path

log = logging.getLogger(__name__)
LOCK_WAIT_S = 10.0
POLL_S = 0.01
# A file system without locks, as some network file systems are.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)
# There only this process's own threads wait for each other.
_without_locks = threading.Lock()


class FileLock:
    """Held from its making until it is closed. Its process's end frees it too."""

    def __init__(self, path: Path, mode: int) -> None:
        """Raises OSError; BlockingIOError where another holds it for longer than LOCK_WAIT_S: it may be stopped."""
        self._handle = _open_lock(path, mode)
        try:
            self._has_locks = _lock(self._handle)
        except BaseException:
            os.close(self._handle)
            raise
        if not self._has_locks:
            log.debug("%s: no locks here", path)
            _without_locks.acquire()

    def close(self) -> None:
        if not self._has_locks:
            _without_locks.release()
        os.close(self._handle)


def _open_lock(path: Path, mode: int) -> int:
    """For writing, which network file systems want of a lock; one that another user left is only read."""
    flags = os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags | os.O_RDWR, mode)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)


def _lock(handle: int) -> bool:
    """False where there are no locks."""
    until_s = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until_s:
                raise
            time.sleep(POLL_S)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return False
