"""One worker process as the dashboard sees it: started, spoken to, listened to, ended; knows no model and no answer.

It is a plain child process that speaks over a socket pair, so that it does not import the script that happens to run
in this process, and its death is an end of file.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

from core.engine.messages import Command, Event, Prepared
from core.errors import EngineError
from core.settings import ROOT

log = logging.getLogger(__name__)
WORKER_END_S = 5.0


class Worker:
    """A worker process and the thread that listens to it. A spare one prepares itself before it is asked for anything.

    `settled` is set when the process has all that a load imports, or has ended.
    """

    def __init__(
        self,
        module: str,
        on_event: Callable[[Worker, Event], None],
        on_end: Callable[[Worker], None],
        is_spare: bool = False,
    ) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno()), *(["spare"] if is_spare else [])],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
            )
        self.settled = threading.Event()
        self._pipe = Connection(ours.detach())
        self._sending = threading.Lock()
        self._on_event, self._on_end = on_event, on_end
        threading.Thread(target=self._listen, name="engine-listener", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def send(self, command: Command) -> None:
        """Hand over a command; a worker that is gone is the listener's business, not the sender's."""
        try:
            with self._sending:
                self._pipe.send(command)
        except (OSError, ValueError):
            log.debug("the engine's process is gone; %s was not sent", type(command).__name__)

    def end(self) -> None:
        """End the process for good, gently first, and wait until it is gone."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(WORKER_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait(self) -> int:
        return self._process.wait()

    def _listen(self) -> None:
        while True:
            try:
                event = self._pipe.recv()
            except (EOFError, OSError):
                break
            if isinstance(event, Prepared):
                self.settled.set()
            else:
                self._on_event(self, event)
        self._on_end(self)
        self.settled.set()


def death_reason(exit_code: int) -> EngineError:
    """What a person should read when the worker ended with `exit_code` (negative: minus the signal's number)."""
    if exit_code == -signal.SIGKILL:
        return EngineError("worker_killed")
    name = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
    return EngineError("worker_died", how=name)
