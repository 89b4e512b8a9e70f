"""How a process ends that cannot write its output: the pipe is closed, the disk is full, there is no output at all.

A reader that has had enough, as in `… | head`, is no fault. The process then ends by SIGPIPE, as a program does that
handles no signals; a shell shows that as 141.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import TextIO


class OutputError(Exception):
    """Standard output, or the reader of standard error, accepts no more. No OSError: those have other causes."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.errno)
        self.is_closed_pipe = error.errno == errno.EPIPE
        self.reason = os.strerror(error.errno or errno.EIO)


class ClosedOutput(io.TextIOBase):
    """Stands for a closed standard output (`>&-`), which is None to Python, so that writing raises no error."""

    def write(self, text: str) -> int:
        if text:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return 0


def write_text(stream: TextIO, text: str) -> None:
    """Write and flush. Raises OutputError; for standard error only where its reader has gone."""
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        if stream is sys.stdout or error.errno == errno.EPIPE:
            raise OutputError(error) from error
        if stream is sys.stderr:
            _drop(2)


def write_bytes(content: bytes) -> None:
    """Write bytes to standard output and flush. Raises OutputError."""
    try:
        binary = getattr(sys.stdout, "buffer", None)
        if binary is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        binary.write(content)
        binary.flush()
    except OSError as error:
        raise OutputError(error) from error


def exit_code_of(main: Callable[[], int], say: Callable[[OutputError], None]) -> int:
    """What `main` returns. Where its output cannot be written: the end by SIGPIPE, or 1 after `say`."""
    _open_standard_streams()
    try:
        try:
            return main()
        finally:
            # argparse writes its help without a flush.
            write_text(sys.stdout, "")
    except OutputError as error:
        _drop(1)
        if error.is_closed_pipe:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGPIPE)
        say(error)
        return 1


def _open_standard_streams() -> None:
    """Open closed standard streams, so that no later file gets their numbers."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(opened, True)
    if sys.stdout is None:
        sys.stdout = ClosedOutput()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # as long as the process
    if sys.stdin is None:
        sys.stdin = open(os.devnull)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop(number: int) -> None:
    """Point a stream to /dev/null, so that Python's flush at exit does not fail."""
    opened = os.open(os.devnull, os.O_WRONLY)
    os.dup2(opened, number)
    os.close(opened)
