"""How long nothing was done, and what happens then: the model is unloaded, a command is run."""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Protocol

from core.common.errors import DeckError
from core.engine.answer import Answer
from core.engine.protocol import EngineState
from core.standby.idle_day import IdleDay
from core.standby.settings import Action, idle_command, idle_minutes

log = logging.getLogger(__name__)
POLL_S = 1.0
# A command that goes on is left to itself: one that ends the machine may wait for this process.
COMMAND_S = 60.0
MAX_SHOWN_CHARS = 300


class SleepingEngine(Protocol):
    """An engine that can let go of its model; EngineRouter and Runner are such."""

    @property
    def state(self) -> EngineState: ...

    @property
    def running_answers(self) -> list[Answer]: ...

    @property
    def used_s(self) -> float: ...

    def sleep(self) -> bool: ...


class IdleWatch:
    """Counts from the last answer, load or download, or sign of a person. Any thread may ask it.

    `is_busy` says whether something else than the engine works, such as a download. `clock` is monotonic, in seconds.
    """

    def __init__(
        self, engine: SleepingEngine, is_busy: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine, self._is_busy, self._clock = engine, is_busy, clock
        self.day = IdleDay()
        # Why the command failed when it was run last; None where it did not.
        self.error: DeckError | None = None
        self._busy_s = self._polled_s = clock()
        self._has_run = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def idle_s(self) -> float:
        """For how long nothing was done."""
        return max(0.0, self._clock() - max(self._busy_s, self._engine.used_s))

    def note(self) -> None:
        """Somebody is there."""
        self._busy_s = self._clock()

    def left_s(self, action: Action) -> float | None:
        """How long until `action`, if nothing is done; None where it is off, or done already."""
        minutes = idle_minutes(action)
        if not minutes or (action == "command" and (self._has_run or not idle_command())):
            return None
        if action == "unload" and self._engine.state.phase != "ready":
            return None
        return max(0.0, 60 * minutes - self.idle_s)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="idle-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(POLL_S)
        self.day.close()

    def poll(self) -> None:
        """Look once, and do what is due."""
        now_s, state = self._clock(), self._engine.state
        is_card_busy = state.server is None and (state.phase == "loading" or bool(self._engine.running_answers))
        self.day.count(now_s - self._polled_s, is_card_busy)
        self._polled_s = now_s
        if state.phase == "loading" or self._engine.running_answers or self._is_busy():
            self._busy_s = now_s
        if self.idle_s < 2 * POLL_S:
            self._has_run = False
        if self.left_s("unload") == 0 and self._engine.sleep():
            log.info("%s was unloaded after %d min without use", state.model, idle_minutes("unload"))
        if self.left_s("command") == 0:
            self._run_command(idle_command())

    def _run_command(self, command: str) -> None:
        self._has_run, self.error = True, None
        log.warning("after %d min without use this is run: %s", idle_minutes("command"), command)
        self.day.close()
        shell = ["/bin/sh", "-c", command]
        try:
            done = subprocess.run(shell, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_S, check=False)
        except subprocess.TimeoutExpired:
            return
        except OSError as error:
            self._fail(command, str(error))
            return
        if done.returncode:
            self._fail(
                command, (done.stderr or done.stdout).decode("utf-8", "replace").strip() or f"exit {done.returncode}"
            )

    def _fail(self, command: str, why: str) -> None:
        """Tried again after as long a time: nothing else ends what costs money."""
        self.error = DeckError("idle_command", command=command, why=why[:MAX_SHOWN_CHARS])
        log.error("%s", self.error)
        self.note()

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                self.poll()
            except Exception:  # The thread's edge: the next look may come through.
                log.exception("the look for idleness failed")
