"""What a request needs before the engine's loop takes it: its grammar compiled, its adapter read. On a thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from core.common.errors import DeckError, EngineError
from core.common.panics import why_of
from core.engine.protocol import Generate
from core.worker.adapter_reader import AdapterReader, ReadAdapter
from core.worker.constraints import Constraint, Constraints

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request with what it needs, or with the reason why it cannot be answered."""

    command: Generate
    constraint: Constraint | None = None
    adapter: ReadAdapter | None = None
    error: DeckError | None = None


class PreparationThread:
    """Prepares one request after the other, and hands each over. `adapters`: None where the model has no room."""

    def __init__(
        self, constraints: Constraints, adapters: AdapterReader | None, hand_over: Callable[[Prepared], None]
    ) -> None:
        self._constraints, self._adapters, self._hand_over = constraints, adapters, hand_over
        self._thread = ThreadPoolExecutor(1, "preparing")
        self._lock = threading.Lock()
        self._pending: set[int] = set()

    def submit(self, command: Generate) -> None:
        with self._lock:
            self._pending.add(command.request)
        self._thread.submit(self._run, command)

    def take(self, request: int) -> bool:
        """Whether a request was still being prepared; from now on it is not."""
        with self._lock:
            was_waiting = request in self._pending
            self._pending.discard(request)
            return was_waiting

    def _run(self, command: Generate) -> None:
        with self._lock:
            if command.request not in self._pending:
                return
        try:
            prepared = self._prepare(command)
        except DeckError as error:
            prepared = Prepared(command, error=error)
        except Exception as error:  # A request's edge.
            log.exception("a request cannot be prepared")
            prepared = Prepared(command, error=EngineError("engine_fault", why=why_of(error)))
        self._hand_over(prepared)

    def _prepare(self, command: Generate) -> Prepared:
        grammar, use = command.options.grammar, command.options.adapter
        if use is not None and self._adapters is None:
            raise EngineError("adapters_no_room", adapter=use.name)
        adapter = self._adapters.read(use) if use is not None and self._adapters is not None else None
        return Prepared(command, self._constraints.make(grammar) if grammar is not None else None, adapter)
