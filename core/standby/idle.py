"""How long nothing was done, and what happens then: the model is unloaded, a command is run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from core.common.errors import DeckError
from core.engine.answer import Answer
from core.engine.protocol import EngineState
from core.standby.command_run import CommandRun
from core.standby.idle_day import IdleDay
from core.standby.settings import Action, idle_command, idle_minutes

log = logging.getLogger(__name__)
POLL_S = 1.0
# A longer time between two looks is one in which the machine, or this process, stood still.
STOOD_STILL_S = 60.0


class SleepingEngine(Protocol):
    """An engine that can let go of its model; EngineRouter and Runner are such."""

    @property
    def state(self) -> EngineState: ...

    @property
    def running_answers(self) -> list[Answer]: ...

    @property
    def used_s(self) -> float: ...

    def sleep(self) -> bool: ...


def since_boot_s() -> float:
    """Goes on while the machine is suspended, as time.monotonic does not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class IdleWatch:
    """Counts from the last answer, load or download, or sign of a person. Any thread may ask it.

    `is_busy` says whether something else than the engine works, such as a download. `clock` is monotonic and the
    engine's too, `boot_clock` also counts a machine's suspension; both in seconds.
    """

    def __init__(
        self,
        engine: SleepingEngine,
        is_busy: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        boot_clock: Callable[[], float] = since_boot_s,
    ) -> None:
        self._engine, self._is_busy, self._clock, self._boot_clock = engine, is_busy, clock, boot_clock
        self.day = IdleDay()
        # Why the command failed when it was run last; None where it did not, or is switched off.
        self.error: DeckError | None = None
        self._busy_s = self._polled_s = clock()
        self._looked_s = boot_clock()
        self._has_run = False
        self._running: CommandRun | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def idle_s(self) -> float:
        """For how long nothing was done."""
        return max(0.0, self._clock() - max(self._busy_s, self._engine.used_s))

    def note(self) -> None:
        """Somebody is there."""
        self._busy_s = self._clock()

    @property
    def running_command(self) -> str | None:
        """The command that runs now; None where there is none."""
        running = self._running
        return None if running is None else running.command

    def left_s(self, action: Action) -> float | None:
        """How long until `action`, if nothing is done; None where it is off, or done already."""
        minutes = idle_minutes(action)
        if not minutes or (action == "command" and (self._has_run or self._running or not idle_command())):
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
        if self._stood_still():
            # Nobody could have been seen meanwhile, and somebody has woken the machine.
            self._busy_s = now_s
        else:
            self.day.count(now_s - self._polled_s, is_card_busy)
        self._polled_s = now_s
        if state.phase == "loading" or self._engine.running_answers or self._is_busy():
            self._busy_s = now_s
        if self.idle_s < 2 * POLL_S:
            self._has_run = False
        if not idle_minutes("command"):
            self.error = None
        if self.left_s("unload") == 0 and self._engine.sleep():
            log.info("%s was unloaded after %d min without use", state.model, idle_minutes("unload"))
        if self._running is not None:
            self._look_at(self._running)
        elif self.left_s("command") == 0:
            self._begin(idle_command())

    def _stood_still(self) -> bool:
        looked_s, self._looked_s = self._looked_s, self._boot_clock()
        return self._looked_s - looked_s > STOOD_STILL_S

    def _begin(self, command: str) -> None:
        self._has_run, self.error = True, None
        log.warning("after %d min without use this is run: %s", idle_minutes("command"), command)
        self.day.close()
        try:
            self._running = CommandRun(command)
        except OSError as error:
            self._fail(command, str(error))

    def _look_at(self, running: CommandRun) -> None:
        """One that goes on is left to itself: it may save things first, or wait until this process has ended."""
        if (exit_code := running.exit_code()) is None:
            return
        self._running = None
        if exit_code:
            self._fail(running.command, running.last_words() or f"exit {exit_code}")
        running.close()

    def _fail(self, command: str, why: str) -> None:
        """Tried again after as long a time: nothing else ends what costs money."""
        self.error = DeckError("idle_command", command=command, why=why)
        log.error("%s", self.error)
        self.note()

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                self.poll()
            except Exception:  # The thread's edge: the next look may come through.
                log.exception("the look for idleness failed")
