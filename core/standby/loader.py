"""Which model a request wants that is not there, and bringing it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from core.common.errors import DeckError, EngineError
from core.engine.answer import Answer
from core.engine.protocol import EngineState
from core.library.last_model import last_model
from core.library.scan import LibraryEntry, find, list_names, locate, scan
from core.standby.settings import other_names


class LoadingEngine(Protocol):
    """An engine that loads models of this machine; EngineRouter and Runner are such."""

    @property
    def state(self) -> EngineState: ...

    @property
    def running_answers(self) -> list[Answer]: ...

    def load(self, folder: Path, context_tokens: int = 0, num_slots: int = 1) -> None: ...

    def wait_while_loading(self, timeout_s: float | None = None) -> EngineState: ...


@dataclass(frozen=True, slots=True)
class WantedModel:
    """A model to bring, in place of whatever is loaded."""

    name: str


class ModelLoader:
    """Brings models for requests. Every method may be called from any thread but the event loop."""

    def __init__(self, engine: LoadingEngine) -> None:
        self._engine = engine

    def wanted(self, name: str | None) -> WantedModel | None:
        """What has to be loaded before a request for `name` can be answered; None where what is there answers it, or
        says why it does not."""
        state = self._engine.state
        if name is None or (name == state.model and state.phase in ("ready", "loading")) or not self._may_load():
            return None
        try:
            return WantedModel(name) if name in list_names() else None
        except DeckError:
            # The page Load model says what is wrong with the folder.
            return None

    def loadable(self) -> list[LibraryEntry]:
        """The models that a request may name beside the loaded one. Reads their headers."""
        try:
            found = scan() if self._may_load() else []
        except DeckError:
            return []
        return [entry for entry in found if entry.checkpoint is not None and entry.name != self._engine.state.model]

    def bring(self, wanted: WantedModel) -> None:
        """Load it, and wait until it is there. Raises the error of a load that fails; what is no model takes no other
        one's place."""
        find(wanted.name)
        last = last_model()
        context_tokens, num_chats = 0, 1
        if last is not None and last.name == wanted.name:
            context_tokens, num_chats = last.context_tokens, last.num_chats
        self._engine.load(locate(wanted.name), context_tokens, num_chats)
        state = self._engine.wait_while_loading()
        if state.model == wanted.name and state.error is not None:
            raise EngineError(state.error.key, **state.error.params)

    def _may_load(self) -> bool:
        """A person who connected another server wants that one's model."""
        return other_names() == "load" and self._engine.state.server is None
