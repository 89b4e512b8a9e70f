"""The engine that pages and the API use: this machine's own or one on another server, whichever was selected last.

One model answers at a time: to select the one kind lets go of the other.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from core.engine.answer import Answer
from core.engine.interface import Engine, PromptCounter
from core.engine.protocol import EngineState, Load
from core.engine.request_options import PLAIN, RequestOptions
from core.engine.runner import Runner
from core.engine.sampling_params import Sampling
from core.engine.thought import ThoughtRules
from core.memory.adapter_room import NO_ROOM, AdapterRoom
from core.memory.cache_choice import EVERY_CHAT_FULL, CacheChoice
from core.remote.engine import RemoteEngine
from core.remote.selection import RemoteSelection, read_selection, selection_path, write_selection

log = logging.getLogger(__name__)
# How soon a dashboard takes up what another process selected.
POLL_INTERVAL_S = 1.0


class EngineRouter:
    """Every method may be called from any thread. The lock is held for moments only: files, processes and servers are
    waited for without it."""

    def __init__(self, local: Runner, remote: RemoteEngine | None = None) -> None:
        self.local, self.remote = local, remote or RemoteEngine()
        self._lock = threading.Lock()
        self._selection: RemoteSelection | None = None
        # Counts what was selected in this process, and how far data/engine.json has it.
        self._turn = self._saved_turn = 0
        self._saving = threading.Lock()
        self._follower: threading.Thread | None = None
        self._stop = threading.Event()

    @property
    def selection(self) -> RemoteSelection | None:
        """The model of another server that is in use; None while this machine's own engine is."""
        return self._selection

    @property
    def state(self) -> EngineState:
        return self._active.state

    @property
    def running_answers(self) -> list[Answer]:
        return self._active.running_answers

    @property
    def used_s(self) -> float:
        """When an answer began or ended last, here or there, by the monotonic clock."""
        return max(self.local.used_s, self.remote.used_s)

    @property
    def silent_s(self) -> float:
        return self._active.silent_s

    @property
    def server_counter(self) -> PromptCounter | None:
        return self._active.server_counter

    def load(
        self,
        folder: Path,
        context_tokens: int = 0,
        num_slots: int = 1,
        kernel: str | None = None,
        force: bool = False,
        on_cpu: bool = False,
        adapters: AdapterRoom = NO_ROOM,
        cache: CacheChoice = EVERY_CHAT_FULL,
    ) -> None:
        """Load on this machine, see Runner.load."""
        with self._lock:
            self._leave_server()
            start = self.local.begin_load(
                Load(folder, context_tokens, num_slots, kernel, force, on_cpu, adapters, cache)
            )
        self._save()
        start()

    def unload(self) -> None:
        """Let go of the model, wherever it is. Running answers keep what was written."""
        with self._lock:
            self._leave_server()
            end = self.local.begin_unload()
        self._save()
        end()

    def sleep(self) -> bool:
        """See Runner.sleep; a model on another server is not this machine's to end."""
        return self._selection is None and self.local.sleep()

    def awake(self) -> AbstractContextManager[None]:
        """See Runner.awake."""
        return self.local.awake()

    def wake(self) -> None:
        """See Runner.wake."""
        self.local.wake()

    def connect(self, selection: RemoteSelection) -> None:
        """Use a model of another server from now on, also after the next start."""
        with self._lock:
            self._turn += 1
            end = self._use_server(selection)
        self._save()
        end()

    def generate(
        self,
        prompt: str | tuple[int, ...],
        sampling: Sampling,
        continues: bool = False,
        client: str = "",
        thought: ThoughtRules | None = None,
        options: RequestOptions = PLAIN,
    ) -> Answer:
        """See Engine.generate."""
        return self._active.generate(prompt, sampling, continues, client, thought, options)

    def wait_while_loading(self, timeout_s: float | None = None) -> EngineState:
        """See Engine.wait_while_loading."""
        return self._active.wait_while_loading(timeout_s)

    def follow_selection(self) -> None:
        """Take up what was selected before, and from now on what another process selects."""
        with self._lock:
            if self._follower is None:
                self._follower = threading.Thread(target=self._follow, name="engine-selection", daemon=True)
                self._follower.start()

    def close(self) -> None:
        """End both engines; what was selected stays selected."""
        self._stop.set()
        with self._lock:
            self.remote.disconnect()
        self.local.close()

    @property
    def _active(self) -> Engine:
        return self.local if self._selection is None else self.remote

    def _save(self) -> None:
        """Keep for the next start what was selected last. May wait for another process that uses the file."""
        with self._saving:
            with self._lock:
                turn, selection = self._turn, self._selection
            if turn == self._saved_turn:
                return
            if selection is not None or read_selection() is not None:
                write_selection(selection)
            self._saved_turn = turn

    # The caller of these holds the lock -----------------------------------------------------------------------------

    def _use_server(self, selection: RemoteSelection) -> Callable[[], None]:
        """The function that it returns waits for the end of this machine's engine."""
        end = self.local.begin_unload()
        self.remote.connect(selection)
        self._selection = selection
        return end

    def _leave_server(self) -> None:
        self._turn += 1
        if self._selection is not None:
            self._selection = None
            self.remote.disconnect()

    # The thread that follows ----------------------------------------------------------------------------------------

    def _follow(self) -> None:
        seen: int | None = None
        while True:
            turn, changed_ns = self._saved_turn, _changed_ns()
            if changed_ns != seen:
                try:
                    is_newest = self._take_up(read_selection(), turn)
                except Exception:  # The thread's edge: the next selection is taken up all the same.
                    log.exception("the selection of another process was not taken up")
                    is_newest = True
                seen = changed_ns if is_newest else seen
            if self._stop.wait(POLL_INTERVAL_S):
                return

    def _take_up(self, selection: RemoteSelection | None, turn: int) -> bool:
        """False where this process has selected something that the file, as it was read, does not have yet."""
        end: Callable[[], None] | None = None
        with self._lock:
            if turn != self._turn:
                return False
            if self._stop.is_set():
                return True
            if selection is not None and selection == self._selection:
                # It was begun anew where it was lost.
                if self.remote.state.phase == "failed":
                    self.remote.reconnect()
            elif selection is not None:
                end = self._use_server(selection)
            elif self._selection is not None:
                self._selection = None
                self.remote.disconnect()
        if end is not None:
            end()
        return True


def _changed_ns() -> int | None:
    try:
        return os.stat(selection_path()).st_mtime_ns
    except OSError:
        return None
