"""Untrusted work in processes of its own, with limits to time, memory and output.

A chat template is a program, and a pattern may unroll to gigabytes. Neither can be ended inside this process; a child
process can. It is started once and kept: a start takes 0.1 s, a question 0.1 ms.
"""

from __future__ import annotations

import logging
import marshal
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.common.paths import ROOT
from core.common.sandbox_child import FAILED, HEADER, MAX_WHY_CHARS, MEMORY, OUTPUT

log = logging.getLogger(__name__)
# The environment variables of a child: it gets no passwords and tokens.
PASSED_VARIABLES = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH")
CHUNK_BYTES, MIB = 2**20, 2**20
# The most memory that an idle child may hold; a usual one holds a quarter of it.
KEPT_MIB = 128

Kind = Literal["time", "memory", "output", "ended", "busy"]


class LimitReached(Exception):
    """The work was stopped. "ended": its process crashed. "busy": its turn did not come, or the machine stood still."""

    def __init__(self, kind: Kind) -> None:
        super().__init__(kind)
        self.kind = kind


class SandboxError(Exception):
    """The child's error message on its input."""


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """For one question: processor time, memory beside what Python itself takes, and time by the clock.

    Processor time ends the work. The clock ends only what makes no progress, on a machine that stands still.
    """

    cpu_s: float
    memory_mib: int
    wait_s: float


_all: weakref.WeakSet[Sandbox] = weakref.WeakSet()


def close_all() -> None:
    """End every child of this process, at its exit. They would end with it, a moment later."""
    for sandbox in list(_all):
        sandbox.close()


class Sandbox:
    """The child processes of one module, one for each key, at most `max_processes`. Any thread may ask.

    Questions of one key wait for each other, those of different keys do not: what hangs keeps its own key waiting.
    """

    def __init__(self, module: str, limits: SandboxLimits, max_processes: int) -> None:
        self.limits = limits
        self._module, self._max_processes = module, max_processes
        self._choosing = threading.Lock()
        self._children: OrderedDict[Hashable, _Child] = OrderedDict()
        self._spare: _Child | None = None
        _all.add(self)

    def warm(self) -> None:
        """Start a child that the first new key gets, so that nobody waits for its start."""
        with self._choosing:
            if self._spare is not None:
                return
            spare = self._spare = _Child(self._module, self.limits)
        with spare.lock:
            spare.begin_unless_alive()

    def ask(
        self, key: Hashable, opening: Any, question: Any, max_chars: int, check: Callable[[], None] = lambda: None
    ) -> str:
        """The answer to `question`, at most `max_chars` long. A child that is new is told `opening` first.

        Both are plain values. `check` is called when it is this question's turn, and may raise what ends it.
        Raises LimitReached, or SandboxError with the child's words.
        """
        deadline_s = time.monotonic() + self.limits.wait_s
        with self._child(key) as child:
            if not child.lock.acquire(timeout=self.limits.wait_s):
                raise LimitReached("busy")
            try:
                check()
                return child.ask(opening, question, max_chars, deadline_s)
            finally:
                child.lock.release()

    def close(self) -> None:
        """End all children; what they are at work on is given up."""
        with self._choosing:
            children = [*self._children.values(), *([self._spare] if self._spare is not None else [])]
            self._children.clear()
            self._spare = None
        for child in children:
            child.kill()

    @contextmanager
    def _child(self, key: Hashable) -> Iterator[_Child]:
        """The child of `key`, which is not taken away while it is in use. Raises LimitReached where all are."""
        with self._choosing:
            gone = self._make_room(key)
            self._children.move_to_end(key)
            child = self._children[key]
            child.num_users += 1
        try:
            if gone is not None:
                gone.end()
            yield child
        finally:
            with self._choosing:
                child.num_users -= 1

    def _make_room(self, key: Hashable) -> _Child | None:
        """See that there is a child of `key`; the one that had to go for it, which its caller ends without the lock."""
        if key in self._children:
            return None
        gone: _Child | None = None
        if len(self._children) >= self._max_processes:
            idle = [other for other, child in self._children.items() if child.num_users == 0]
            if not idle:
                raise LimitReached("busy")
            gone = self._children.pop(idle[0])
        self._children[key] = self._spare or _Child(self._module, self.limits)
        self._spare = None
        return gone


class _Child:
    """One process, started when it is asked; whatever goes wrong with it, the next question gets a new one."""

    def __init__(self, module: str, limits: SandboxLimits) -> None:
        self.lock = threading.Lock()
        self.num_users = 0
        self._module, self._limits = module, limits
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: socket.socket | None = None
        # Whether it was told what comes first.
        self._is_opened = False

    def ask(self, opening: Any, question: Any, max_chars: int, deadline_s: float) -> str:
        try:
            self.begin_unless_alive()
            if not self._is_opened:
                self._send(opening, deadline_s)
                self._is_opened = True
            self._send([max_chars, question], deadline_s)
            kind, text = self._receive(max_chars, deadline_s)
        except TimeoutError:
            self.end()
            raise LimitReached("busy") from None
        except (OSError, EOFError):
            raise LimitReached(self._cause_of_death()) from None
        except BaseException:
            # The answer to this question must not be taken for that of the next one.
            self.end()
            raise
        if kind == MEMORY or self._resident_mib() > KEPT_MIB:
            # It holds what it could not finish, or did not give back.
            self.end()
        if kind == MEMORY:
            raise LimitReached("memory")
        if kind == OUTPUT:
            raise LimitReached("output")
        if kind == FAILED:
            raise SandboxError(text)
        return text

    def kill(self) -> None:
        """End the process, from any thread: whoever waits for its answer sees that it is gone."""
        process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def end(self) -> None:
        """Kill the process and wait until it is gone, which is at once: it holds nothing that must be written down."""
        process, pipe = self._process, self._pipe
        self._process = self._pipe = None
        self._is_opened = False
        if pipe is not None:
            pipe.close()
        if process is not None:
            process.kill()
            process.wait()

    def begin_unless_alive(self) -> None:
        """Start the process where there is none. Raises LimitReached where there can be none."""
        if self._process is not None and self._process.poll() is None:
            return
        self.end()
        try:
            self._start()
        except OSError as error:
            # No memory or no descriptor is left for a process: nobody's fault who is asked about here.
            log.error("no process of %s could be started: %s", self._module, error)
            raise LimitReached("busy") from error

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            numbers = (theirs.fileno(), self._limits.memory_mib, self._limits.cpu_s)
            self._pipe = ours
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, *map(str, numbers)],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                env={name: os.environ[name] for name in PASSED_VARIABLES if name in os.environ},
            )

    def _resident_mib(self) -> int:
        """What the process holds; 0 where the system does not say."""
        assert self._process is not None
        try:
            pages = Path(f"/proc/{self._process.pid}/statm").read_text("ascii").split()[1]
        except OSError:
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE") // MIB

    def _cause_of_death(self) -> Kind:
        process, self._process = self._process, None
        self.end()
        if process is None:
            return "ended"
        try:
            code = process.wait(1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code == -signal.SIGPROF:
            return "time"
        log.warning("a process of %s ended with exit code %d", self._module, code)
        return "ended"

    def _send(self, value: Any, deadline_s: float) -> None:
        data = marshal.dumps(value)
        assert self._pipe is not None
        self._pipe.settimeout(_left(deadline_s))
        self._pipe.sendall(HEADER.pack(len(data)) + data)

    def _receive(self, max_chars: int, deadline_s: float) -> tuple[bytes, str]:
        (length,) = HEADER.unpack(self._read(HEADER.size, deadline_s))
        # A template that got out of its sandbox could say anything.
        if not 0 < length <= 1 + 4 * max(max_chars, MAX_WHY_CHARS):
            raise EOFError
        data = self._read(length, deadline_s)
        return bytes(data[:1]), data[1:].decode("utf-8", "replace")

    def _read(self, count: int, deadline_s: float) -> bytearray:
        assert self._pipe is not None
        data = bytearray()
        while len(data) < count:
            self._pipe.settimeout(_left(deadline_s))
            chunk = self._pipe.recv(min(count - len(data), CHUNK_BYTES))
            if not chunk:
                raise EOFError
            data += chunk
        return data


def _left(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s
