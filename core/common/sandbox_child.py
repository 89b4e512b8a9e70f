"""The child's side of core/common/sandbox.py: limits itself, then answers until its parent closes the socket."""

from __future__ import annotations

import marshal
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

# The length of what follows. An answer's first byte says what it is.
HEADER = struct.Struct(">Q")
DONE, FAILED, MEMORY, OUTPUT = b"+", b"!", b"M", b"O"
MAX_WHY_CHARS = 200
MIB = 2**20

Work = Callable[[Any], str]


def serve(prepare: Callable[[Any], Work]) -> None:
    """Answer what comes over the socket that the command line names. `prepare` makes the work of what comes first."""
    number, memory_mib, cpu_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    with socket.socket(fileno=number) as pipe, pipe.makefile("rwb") as stream:
        # Ctrl-C is the parent's to hear.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _limit(memory_mib)
        with suppress(EOFError, ConnectionError):
            work = prepare(_read(stream))
            while True:
                max_chars, question = _read(stream)
                # Its end is the kernel's: nothing in this process has to run for it.
                signal.setitimer(signal.ITIMER_PROF, cpu_s)
                kind, text = _answer(work, question, max_chars)
                signal.setitimer(signal.ITIMER_PROF, 0)
                data = text.encode("utf-8", "replace")
                stream.write(HEADER.pack(1 + len(data)) + kind + data)
                stream.flush()


def _answer(work: Work, question: Any, max_chars: int) -> tuple[bytes, str]:
    try:
        text = work(question)
    except MemoryError:
        return MEMORY, ""
    except Exception as error:  # A stranger's program raises what it likes.
        return FAILED, (_words(error) or type(error).__name__)[:MAX_WHY_CHARS]
    return (DONE, text) if len(text) <= max_chars else (OUTPUT, "")


def _words(error: Exception) -> str:
    try:
        return str(error)
    except Exception:
        return ""


def _read(stream: Any) -> Any:
    head = stream.read(HEADER.size)
    if len(head) < HEADER.size:
        raise EOFError
    (length,) = HEADER.unpack(head)
    return marshal.loads(stream.read(length))


def _limit(memory_mib: int) -> None:
    """No more memory than this beside what is there, no core, no file that grows, and the first to go in need."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + memory_mib * MIB)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 0)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")


def _lower(kind: int, limit: int) -> None:
    _, hard = resource.getrlimit(kind)
    lowest = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (lowest, lowest))
