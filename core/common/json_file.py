"""One small file of values that several threads and processes read and change.

A change is read, made and written under a lock on PATH.lock, so that none is lost. A damaged file is never overwritten:
it stays until a person mends it or sets it aside.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from core.common.codec import JSON, PARSE_ERRORS, Codec, problem_of
from core.common.errors import DeckError
from core.common.file_lock import LOCK_WAIT_S, FileLock
from core.common.files import remove_leftovers, sync, write_atomically
from core.common.plain_json import InvalidContent
from core.common.values import printable

log = logging.getLogger(__name__)
Value = TypeVar("Value")
Stamp = tuple[int, int, int]
MAX_BYTES = 16 * 2**20
# Two writes within one tick of the file system's clock may leave the same time, size and inode behind.
SETTLED_NS = 100_000_000


class FileError(DeckError):
    """A small file cannot be read or written; nothing was changed."""


class FileDamaged(FileError):
    """The file's content is not what is written there: cut off, mistyped, of another program."""


@dataclass(slots=True)
class Change(Generic[Value]):
    """What is in the file; what is put here in its place is written."""

    value: Value


@dataclass(frozen=True, slots=True)
class _Seen(Generic[Value]):
    """What was found in the file that has this stamp; `damage` is empty for a whole one. `rest` are fields that another
    version of this program keeps there."""

    stamp: Stamp
    value: Value
    damage: str = ""
    rest: Mapping[str, Any] = field(default_factory=dict)


class JsonFile(Generic[Value]):
    """`parse` makes a value of what the file holds, or raises one of PARSE_ERRORS; `dump` is its reverse.

    `empty` is the value of a missing file. Where `fields` names those that `dump` writes, others in the file are kept.
    A value is shared by all who read it: it is replaced, never changed. `sentences` are a store's own ones for
    "damaged", "unreadable" and "unwritable", each with {file} and {why}. Any thread and any process may call everything
    here, but none may change the file while it is changing it.
    """

    def __init__(
        self,
        path: Path,
        parse: Callable[[Any], Value],
        dump: Callable[[Value], Any],
        empty: Value,
        mode: int = 0o644,
        fields: Collection[str] = (),
        codec: Codec | None = None,
        sentences: Mapping[str, str] | None = None,
        write: Callable[[Path, str, int], None] = write_atomically,
    ) -> None:
        self.path = path
        self._parse, self._dump, self._empty, self._mode = parse, dump, empty, mode
        self._fields = fields
        self._codec, self._sentences, self._write_whole = codec or JSON, sentences or {}, write
        self._seen: _Seen[Value] | None = None
        self._complained: Stamp | str | None = None

    def read(self) -> Value:
        """What the file holds. Raises FileDamaged, or FileError where it cannot be read."""
        try:
            stamp = _stamp(os.stat(self.path))
            seen = self._seen
            if seen is None or seen.stamp != stamp:
                seen = self._look()
                # One that was written just now is looked at again.
                self._seen = seen if time.time_ns() - seen.stamp[0] > SETTLED_NS else None
        except FileNotFoundError:
            return self._empty
        except OSError as error:
            raise self._error("unreadable", _why(error)) from error
        return self._whole(seen)

    def read_or_empty(self) -> Value:
        """What the file holds; nothing where it cannot be used, which the log says once for each state of the file.

        The log names the kind of an error only: its text could quote the file.
        """
        try:
            return self.read()
        except FileError as error:
            state = self._state()
            if state != self._complained:
                self._complained = state
                log.warning("%s is not used: %s", printable(str(self.path)), error.params["why"])
            return self._empty

    def problem(self) -> FileError | None:
        """Why the file cannot be used."""
        try:
            self.read()
        except FileError as error:
            return error
        return None

    @contextmanager
    def change(self) -> Iterator[Change[Value]]:
        """The value as it is now; what it is when the block ends is on the disk then.

        Raises FileError, FileDamaged: then nothing was changed.
        """
        with self._alone() as path:
            try:
                seen = self._look()
                before, rest = self._whole(seen), seen.rest
            except FileNotFoundError:
                before, rest = self._empty, {}
            except OSError as error:
                raise self._error("unwritable", _why(error)) from error
            change = Change(before)
            yield change
            if change.value != before:
                self._write(path, change.value, rest)

    def set_aside(self) -> Path | None:
        """Give a damaged file another name beside this one, so that the next change begins a new file.

        None where it is not damaged (any more). Raises FileError where it cannot be renamed.
        """
        with self._alone() as path:
            if not isinstance(self.problem(), FileDamaged):
                return None
            name = f"{path.name}.damaged-{datetime.now():%Y%m%d-%H%M%S}"
            tries = (path.with_name(name + end) for end in ("", *(f"-{number}" for number in range(2, 1000))))
            aside = next(one for one in tries if not os.path.lexists(one))
            try:
                path.rename(aside)
            except OSError as error:
                raise self._error("unwritable", _why(error)) from error
            log.warning("%s was damaged: it is %s now", printable(str(path)), printable(aside.name))
            return aside

    def _look(self) -> _Seen[Value]:
        """The file as it is on the disk. Raises OSError."""
        content, stamp = _content(self.path)
        try:
            if len(content) > MAX_BYTES:
                raise InvalidContent(f"more than {MAX_BYTES // 2**20} MiB")
            if not content.strip(b"\0"):
                # What a power cut leaves of a file that was written without care.
                raise InvalidContent("it holds nothing")
            found = self._codec.load(content.decode("utf-8").removeprefix("\ufeff"))
            value = self._parse(found)
            rest = {name: kept for name, kept in found.items() if name not in self._fields} if self._fields else {}
            return _Seen(stamp, value, rest=rest)
        except PARSE_ERRORS as error:
            return _Seen(stamp, self._empty, problem_of(error))

    def _whole(self, seen: _Seen[Value]) -> Value:
        if seen.damage:
            raise FileDamaged(self._key("damaged"), file=printable(str(self.path)), why=seen.damage)
        return seen.value

    def _write(self, path: Path, value: Value, rest: Mapping[str, Any]) -> None:
        try:
            mode = self._mode & stat.S_IMODE(path.stat().st_mode) if path.exists() else self._mode
            # Whoever may not write it can still replace it by another file: that is not meant by such permissions.
            if path.exists() and not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            values = {**self._dump(value), **rest} if self._fields else self._dump(value)
            text = self._codec.dump(values)
            if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
                # It would be read as damaged, and what it held before would be gone.
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            self._write_whole(path, text, mode or self._mode)
            sync(path.parent)
            remove_leftovers(path.parent)
        except OSError as error:
            raise self._error("unwritable", _why(error)) from error

    @contextmanager
    def _alone(self) -> Iterator[Path]:
        """The file's real place, which is locked: where the path is a link, the link stays one."""
        try:
            path = Path(os.path.realpath(self.path))
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_name(f"{path.name}.lock"), self._mode)
        except BlockingIOError:
            raise FileError("file_busy", file=printable(str(self.path)), seconds=int(LOCK_WAIT_S)) from None
        except OSError as error:
            raise self._error("unwritable", _why(error)) from error
        with closing(lock):
            yield path

    def _state(self) -> Stamp | str:
        try:
            return _stamp(os.stat(self.path))
        except OSError as error:
            return _why(error)

    def _error(self, kind: str, why: str) -> FileError:
        return FileError(self._key(kind), file=printable(str(self.path)), why=why)

    def _key(self, kind: str) -> str:
        return self._sentences.get(kind, f"file_{kind}")


def _content(path: Path) -> tuple[bytes, Stamp]:
    """What a regular file holds, as far as it is read. Raises OSError for other kinds: a pipe may never end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return file.read(MAX_BYTES + 1), _stamp(status)


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__
