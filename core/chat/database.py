"""The file of the chat history: connections, transactions, and SQLite's errors as sentences.

Write-ahead logging with synchronous=FULL: a change that returned is in the log, and the log is on the disk. A killed
process loses nothing that was acknowledged, a power cut neither; what an answer grew by since its last write is at
risk, and that is under a second. The price, one fsync a change, is paid about twice a second while an answer grows.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import methodcaller
from pathlib import Path

from core.chat.schema import MIGRATIONS, is_foreign, migrate, version_of
from core.common.errors import DeckError
from core.common.values import printable

BUSY_S = 5.0
# Connections that wait for the next reader: each keeps two files open.
MAX_IDLE = 4
PRIMARY_CODE = 0xFF


class ChatStoreError(DeckError):
    """The chat history cannot be read or written, or what was asked of it cannot be done."""


def changed_meanwhile(text: str) -> ChatStoreError:
    """The refusal of a change to something that is another by now. `text` is what was to stand there, or nothing."""
    return ChatStoreError("chat_changed", text=text or "—")


class Database:
    """One writing connection behind a lock, and as many reading ones as threads read at once; few of them are kept.

    `is_alone` says that no other process has the file open: then nobody else is writing an answer into it.
    Raises ChatStoreError where the file cannot be used; then it is as it was.
    """

    def __init__(self, path: Path, busy_s: float = BUSY_S, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> None:
        self.path = path
        self._busy_s = busy_s
        self._writing = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        with self._told():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Chats are nobody else's; the files that SQLite puts beside it get the same permissions.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._writer = self._connect()
        try:
            self._prepare(migrations)
            self._presence, self.is_alone = self._announce()
        except BaseException:
            self._writer.close()
            raise

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of the block, or nothing where it raises."""
        with self._told(), self._writing:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees the file as it is now, whatever is written meanwhile."""
        with self._told():
            try:
                db = self._idle.pop()
            except IndexError:
                db = self._connect()
                db.execute("PRAGMA query_only = ON")
            try:
                db.execute("BEGIN")
                yield db
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                if len(self._idle) < MAX_IDLE:
                    self._idle.append(db)
                else:
                    db.close()

    def close(self) -> None:
        """Let go of the file, at the end of the process: nothing is written or read after it."""
        with self._writing:
            while self._idle:
                self._idle.pop().close()
            self._writer.close()
            os.close(self._presence)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=self._busy_s, isolation_level=None, check_same_thread=False)
        # A row whose text is no UTF-8 is read with marks in it; else no chat of the file could be listed.
        db.text_factory = methodcaller("decode", "utf-8", "replace")
        return db

    def _prepare(self, migrations: Sequence[Sequence[str]]) -> None:
        with self._told():
            found = version_of(self._writer)
            if is_foreign(self._writer):
                raise ChatStoreError("chat_store_damaged", path=printable(str(self.path)))
        if found > len(migrations):
            raise ChatStoreError("chat_store_newer", path=printable(str(self.path)), found=found, known=len(migrations))
        with self._told():
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._writer.execute("PRAGMA synchronous = FULL")
            self._writer.execute("PRAGMA foreign_keys = ON")
        with self.change() as db:
            migrate(db, migrations)

    def _announce(self) -> tuple[int, bool]:
        """Hold a lock that the kernel takes back when the process ends, however it ends."""
        with self._told():
            handle = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_alone = True
            except BlockingIOError:
                is_alone = False
            # Whoever is first holds the file until it has put in order what a killed process left (see `settle`).
            if not is_alone:
                fcntl.flock(handle, fcntl.LOCK_SH)
            return handle, is_alone

    def settle(self) -> None:
        """Let other processes in, after what a killed one left was put in order."""
        fcntl.flock(self._presence, fcntl.LOCK_SH)

    @contextmanager
    def _told(self) -> Iterator[None]:
        path = printable(str(self.path))
        try:
            yield
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise ChatStoreError("chat_store_readonly", path=path) from error
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ChatStoreError("chat_store_full", path=path) from error
            raise ChatStoreError("chat_store_failed", path=path, why=error.strerror or str(error)) from error
        except UnicodeDecodeError as error:
            # What SQLite says of a damaged file quotes the damage.
            raise ChatStoreError("chat_store_damaged", path=path) from error
        except sqlite3.Error as error:
            match getattr(error, "sqlite_errorcode", 0) & PRIMARY_CODE:
                case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                    raise ChatStoreError("chat_store_locked", path=path) from error
                case sqlite3.SQLITE_READONLY:
                    raise ChatStoreError("chat_store_readonly", path=path) from error
                case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                    raise ChatStoreError("chat_store_damaged", path=path) from error
                case sqlite3.SQLITE_FULL:
                    raise ChatStoreError("chat_store_full", path=path) from error
            raise ChatStoreError("chat_store_failed", path=path, why=printable(str(error))) from error
