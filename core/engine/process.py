"""One worker process as the dashboard sees it: started, spoken to, listened to, ended.

It is a plain child process that speaks over a socket pair, so that it does not import the script that happens to run
in this process, and its death is an end of file. A worker may stop reading at any time (a GPU that hangs, swapping, a
dead network disk): only a thread of its own writes to it, and only the caller of `end` waits for it.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

from core.common.errors import EngineError
from core.common.paths import ROOT
from core.engine.protocol import Command, Event, Generate, Heartbeat, ImportsDone, Loaded

log = logging.getLogger(__name__)
# How long a worker may take to end: after SIGTERM, by itself after it closed the pipe, and after SIGKILL.
WORKER_END_S, LINGER_S, KILL_S = 2.0, 5.0, 5.0
# How late heartbeats (core/worker/heartbeat.py) may be.
SILENT_S = 3.0
# What may wait for a worker that does not read; prompts are most of it.
MAX_WAITING_BYTES = 64 * 2**20
# No event is a hundredth as long.
MAX_EVENT_BYTES = 64 * 2**20
NEVER = float("inf")


class WorkerProcess:
    """A worker process, the thread that writes to it and the one that listens.

    A warm one imports what a load needs before it is asked for anything. `settled` is set once it has, or has ended;
    `has_ended` once nothing more will come from it. `on_event` and `on_end` are called in the thread that listens.
    """

    def __init__(
        self,
        module: str,
        on_event: Callable[[WorkerProcess, Event], None],
        on_end: Callable[[WorkerProcess], None],
        is_warm: bool = False,
        on_imports_done: Callable[[ImportsDone], None] = lambda _: None,
    ) -> None:
        """Raises OSError where no process can be started, RuntimeError where no thread can."""
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno()), *(["warm"] if is_warm else [])],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
            )
        self.settled, self.has_ended = threading.Event(), False
        self._pipe = Connection(os.dup(self._socket.fileno()))
        self._on_event, self._on_end, self._on_imports_done = on_event, on_end, on_imports_done
        self._changed = threading.Condition()
        self._commands: deque[tuple[int | None, bytes]] = deque()
        self._waiting_bytes, self._is_closed = 0, False
        # By time.monotonic(): its last sign of life, since when it does not read a command, since when it is stuck.
        self.last_sign_s, self._unread_s, self._stuck_s = time.monotonic(), NEVER, NEVER
        # While it loads: how much it has worked, and when that was last seen to grow.
        self._is_loaded, self._work, self._worked_s = False, 0, -NEVER
        self._is_garbled = False
        self._writer = threading.Thread(target=self._write, name="engine-writer", daemon=True)
        try:
            self._writer.start()
            threading.Thread(target=self._listen, name="engine-listener", daemon=True).start()
        except RuntimeError:
            self._process.kill()
            self._close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def silent_s(self) -> float:
        """For how long the worker has not given signs of life, read commands or finished steps; 0 while it does.

        While it loads, a library that comes slowly from a disk holds up the heartbeats: then work counts as well.
        """
        now_s = time.monotonic()
        late_s = max(now_s - self.last_sign_s, now_s - self._unread_s)
        if late_s >= SILENT_S and not self._is_loaded:
            if (work := _work_of(self.pid)) != self._work:
                self._work, self._worked_s = work, now_s
            late_s = min(late_s, now_s - self._worked_s)
        return max(0.0, now_s - self._stuck_s, late_s if late_s >= SILENT_S else 0.0)

    def send(self, command: Command) -> None:
        """Hand over a command and wait for nothing. The listener reports a worker that is gone.

        Raises EngineError for a prompt while more than MAX_WAITING_BYTES wait for the worker.
        """
        data = bytes(ForkingPickler.dumps(command))
        request = command.request if isinstance(command, Generate) else None
        with self._changed:
            if request is not None and self._commands and self._waiting_bytes + len(data) > MAX_WAITING_BYTES:
                raise EngineError("engine_silent", seconds=max(1, round(self.silent_s)))
            self._commands.append((request, data))
            self._waiting_bytes += len(data)
            self._changed.notify_all()

    def withdraw(self, request: int) -> bool:
        """Take back a prompt that was not written to the pipe yet; False where the worker has it, or part of it."""
        with self._changed:
            for place, (waiting, data) in enumerate(self._commands):
                if waiting == request:
                    del self._commands[place]
                    self._waiting_bytes -= len(data)
                    return True
        return False

    def end(self) -> None:
        """End the process and wait until it is gone. A silent one is killed at once.

        Several threads may end the same process. One that the system does not let go of is left behind after KILL_S.
        """
        if self.silent_s:
            self._process.kill()
        else:
            self._process.terminate()
        if self._exit_code(WORKER_END_S) is None:
            self._process.kill()
            if self._exit_code(KILL_S) is None:
                log.error("the engine's process %d cannot be killed: the system waits for a disk or a GPU", self.pid)
        self._close()

    def end_reason(self) -> EngineError:
        """Why it ended, after its side of the pipe closed. A process that still runs has sent something unreadable."""
        exit_code = None if self._is_garbled else self._exit_code(LINGER_S)
        if exit_code is not None:
            return death_reason(exit_code)
        return EngineError("worker_garbled")

    def _exit_code(self, wait_s: float) -> int | None:
        try:
            return self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            return None

    def _close(self) -> None:
        """Release both threads, whatever they wait for."""
        with self._changed:
            self._is_closed = True
            self._commands.clear()
            self._changed.notify_all()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    # The thread that writes ----------------------------------------------------------------------------------------

    def _write(self) -> None:
        while (data := self._next()) is not None:
            self._unread_s = time.monotonic()
            try:
                self._pipe.send_bytes(data)
            except (OSError, ValueError):
                log.debug("the engine's process is gone; a command was not sent")
                return
            self._unread_s = NEVER

    def _next(self) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: self._commands or self._is_closed)
            if self._is_closed:
                return None
            _, data = self._commands.popleft()
            self._waiting_bytes -= len(data)
            return data

    # The thread that listens ---------------------------------------------------------------------------------------

    def _listen(self) -> None:
        try:
            while True:
                self._handle(self._receive())
        except (EOFError, OSError):
            pass
        except Exception:  # After an event that cannot be read, nothing that follows can be trusted.
            log.exception("the engine's process said something that cannot be understood")
            self._is_garbled = True
        self.has_ended = True
        try:
            self._on_end(self)
        except Exception:  # The thread's edge.
            log.exception("the end of the engine's process was not noted")
        self.settled.set()
        self._close_files()

    def _receive(self) -> Event:
        event = pickle.loads(self._pipe.recv_bytes(MAX_EVENT_BYTES))
        if not isinstance(event, Event):
            raise TypeError(type(event).__name__)
        return event

    def _handle(self, event: Event) -> None:
        self.last_sign_s = time.monotonic()
        try:
            match event:
                case Heartbeat():
                    self._stuck_s = self.last_sign_s - event.stuck_s if event.stuck_s else NEVER
                case ImportsDone():
                    self._on_imports_done(event)
                case _:
                    self._is_loaded = self._is_loaded or isinstance(event, Loaded)
                    self._on_event(self, event)
        except Exception:  # One event's fault is not to end the thread that hears all others.
            log.exception("%s of the engine's process", type(event).__name__)
        if isinstance(event, ImportsDone):
            self.settled.set()

    def _close_files(self) -> None:
        """Close the pipe, once the writing thread does not use it any more."""
        self._close()
        self._writer.join()
        self._pipe.close()
        self._socket.close()


def _work_of(pid: int) -> int:
    """A figure that grows while process `pid` computes or its memory is read from a disk."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(int(fields[place]) for place in (7, 9, 11, 12))  # Minor and major page faults, user and system time.


def death_reason(exit_code: int) -> EngineError:
    """What a person should read when the worker ended with `exit_code` (negative: minus the signal's number)."""
    if exit_code == -signal.SIGKILL:
        return EngineError("worker_killed")
    name = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
    return EngineError("worker_died", how=name)
