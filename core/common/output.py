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
    """Standard output, or whoever read standard error, takes no more; no OSError, for that would be somebody else's."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.errno)
        self.is_closed_pipe = error.errno == errno.EPIPE
        self.reason = os.strerror(error.errno or errno.EIO)


class ClosedOutput(io.TextIOBase):
    """Stands for a standard output that was closed (`>&-`): to Python that would be None, and a word to it no error."""

    def write(self, text: str) -> int:
        if text:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return 0


def write_text(stream: TextIO, text: str) -> None:
    """Write and flush. Raises OutputError; of standard error only where its reader has gone, else the work goes on."""
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        if stream is sys.stdout or error.errno == errno.EPIPE:
            raise OutputError(error) from error
        if stream is sys.stderr:
            _drop(2)


def write_bytes(content: bytes) -> None:
    """The same for standard output and what is no text."""
    try:
        binary = getattr(sys.stdout, "buffer", None)
        if binary is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        binary.write(content)
        binary.flush()
    except OSError as error:
        raise OutputError(error) from error


def exit_code_of(main: Callable[[], int], say: Callable[[OutputError], None]) -> int:
    """What `main` returns; where its output cannot be written, the end that a shell expects, or 1 after `say`."""
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
    """See that no file that is opened later gets the number of a stream that was closed."""
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
    """Let Python's own flush at the end find a place for what could not be written."""
    opened = os.open(os.devnull, os.O_WRONLY)
    os.dup2(opened, number)
    os.close(opened)
