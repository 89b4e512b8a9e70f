"""Which model a request wants that is not there, and bringing it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from core.common.errors import DeckError, EngineError
from core.common.paths import model_name
from core.engine.answer import Answer
from core.engine.protocol import EngineState
from core.library.adapters import room_for_adapter, room_to_load
from core.library.last_model import LastModel, last_load, note_last_model
from core.library.scan import LibraryEntry, find, list_names, locate, scan
from core.memory.adapter_room import NO_ROOM, AdapterRoom
from core.memory.cache_choice import EVERY_CHAT_FULL, CacheChoice
from core.standby.settings import other_names


class LoadingEngine(Protocol):
    """An engine that loads models of this machine; EngineRouter and Runner are such."""

    @property
    def state(self) -> EngineState: ...

    @property
    def running_answers(self) -> list[Answer]: ...

    def load(
        self,
        folder: Path,
        context_tokens: int = 0,
        num_slots: int = 1,
        *,
        adapters: AdapterRoom = NO_ROOM,
        cache: CacheChoice = EVERY_CHAT_FULL,
    ) -> None: ...

    def awake(self) -> AbstractContextManager[None]: ...

    def wake(self) -> None: ...

    def wait_while_loading(self, timeout_s: float | None = None) -> EngineState: ...


@dataclass(frozen=True, slots=True)
class WantedModel:
    """A model to bring, in place of whatever is loaded. `is_asleep`: as it was before nobody used it. `adapter`: what
    is to answer beside it, and needs room."""

    name: str
    is_asleep: bool = False
    adapter: str | None = field(default=None, compare=False)


class ModelLoader:
    """Brings models for requests. Every method may be called from any thread but the event loop."""

    def __init__(self, engine: LoadingEngine) -> None:
        self._engine = engine

    def awake(self) -> AbstractContextManager[None]:
        """Inside the `with` block what is loaded does not fall asleep. Waits for nothing: for the event loop, too."""
        return self._engine.awake()

    def wanted(self, name: str | None, is_character: Callable[[str], bool] = lambda name: False) -> WantedModel | None:
        """What has to be loaded before a request for `name` can be answered; None where what is there answers it, or
        says why it does not."""
        state = self._engine.state
        name, adapter = self._split(name)
        asleep = None if state.asleep is None else model_name(state.asleep.folder)
        if asleep is not None and name in (None, asleep):
            return WantedModel(asleep, is_asleep=True)
        if name is not None and not (name == state.model and state.phase in ("ready", "loading")) and self._has(name):
            return WantedModel(name, adapter=adapter)
        if asleep is not None and name is not None and (other_names() == "any" or is_character(name)):
            return WantedModel(asleep, is_asleep=True)
        return None

    def _split(self, name: str | None) -> tuple[str | None, str | None]:
        """The model and the adapter of a name like "MODEL:ADAPTER"."""
        base, _, adapter = (name or "").rpartition(":")
        asleep = self._engine.state.asleep
        known = (self._engine.state.model, asleep and model_name(asleep.folder))
        return (base, adapter) if base and (base in known or self._has(base)) else (name, None)

    def _has(self, name: str) -> bool:
        try:
            return self._may_load() and name in list_names()
        except DeckError:
            # The page Load model says what is wrong with the folder.
            return False

    def loadable(self) -> list[LibraryEntry]:
        """The models that a request may name, the loaded one among them. Reads their headers."""
        try:
            found = scan() if self._may_load() else []
        except DeckError:
            return []
        return [entry for entry in found if entry.checkpoint is not None]

    def bring(self, wanted: WantedModel) -> None:
        """Load it, and wait until it is there. Raises the error of a load that fails; what is no model takes no other
        one's place."""
        if wanted.is_asleep:
            self._engine.wake()
        else:
            self._load(wanted)
        state = self._engine.wait_while_loading()
        if state.model == wanted.name and state.error is not None:
            raise EngineError(state.error.key, **state.error.params)
        if state.model == wanted.name and state.facts is not None:
            facts = state.facts
            note_last_model(
                LastModel(
                    wanted.name,
                    facts.context_tokens,
                    facts.num_slots,
                    facts.adapters,
                    CacheChoice(facts.pool_tokens, facts.cache_bits),
                )
            )

    def _load(self, wanted: WantedModel) -> None:
        name, checkpoint = wanted.name, find(wanted.name)
        room = room_to_load(checkpoint) if wanted.adapter is None else room_for_adapter(checkpoint)
        last = last_load(name) or LastModel(name, 0, 1)
        self._engine.load(locate(name), last.context_tokens, last.num_chats, adapters=room, cache=last.cache)

    def _may_load(self) -> bool:
        """A person who connected another server wants that one's model."""
        return other_names() == "load" and self._engine.state.server is None
