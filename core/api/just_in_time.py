"""Requests that wait for a model: the one that they name is loaded first, where that is wanted. For the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from core.api.errors import ApiError
from core.api.intake import Intake
from core.api.model_tag import without_tag
from core.api.served_model import no_such_model, require_adapter
from core.common.errors import DeckError
from core.common.paths import model_name
from core.engine.interface import Engine
from core.personas.listing import Listing
from core.standby.loader import ModelLoader, WantedModel

# What is being answered is let to its end for so long; whoever wants another model is then told to come again.
TURN_S = 60.0
POLL_S = 0.1
# Requests that may wait for a load, as many as a model answers at once at most; each holds its messages.
MAX_WAITING = 128


class JustInTime:
    """Brings the model of a request. One load at a time: whoever wants another model meanwhile is told so."""

    def __init__(self, engine: Engine, loader: ModelLoader | None, intake: Intake, characters: Listing) -> None:
        self._engine, self._loader, self._intake, self._characters = engine, loader, intake, characters
        self._bringing: tuple[WantedModel, asyncio.Task[None]] | None = None
        self._num_waiting = 0

    def awake(self) -> AbstractContextManager[None]:
        """To be held from before `ready` until the engine was asked: what is loaded does not fall asleep meanwhile."""
        return nullcontext() if self._loader is None else self._loader.awake()

    async def ready(self, name: str | None) -> None:
        """Wait until a request for `name` can be answered or refused. Raises ApiError, EngineError."""
        if (loader := self._loader) is None:
            return
        state, wanted = self._engine.state, None
        if not (state.phase == "ready" and name in (None, state.model)):
            name, wanted = await self._intake.run(lambda: self._meant(loader, name))
        is_there = state.phase == "ready" and name in (None, state.model)
        if self._bringing is None:
            if wanted is None:
                # A name that means nothing wakes no model.
                if name is not None and state.asleep is not None:
                    raise no_such_model(name, model_name(state.asleep.folder))
                return
            task = asyncio.create_task(self._bring(wanted, loader.bring))
            # Where all who waited have gone, nobody else asks how it ended.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._bringing = wanted, task
        elif wanted not in (None, self._bringing[0]) or (wanted is None and is_there):
            # Whoever came first has it: a model that goes on being asked for would never leave.
            raise ApiError("api_loading", name=self._bringing[0].name, percent=self._percent())
        await self._wait(self._bringing[1])

    def _meant(self, loader: ModelLoader, name: str | None) -> tuple[str | None, WantedModel | None]:
        """The name without Ollama's tag, and what is to be brought for it."""
        state = self._engine.state
        asleep = None if state.asleep is None else model_name(state.asleep.folder)
        name = without_tag(name, (state.model, asleep))
        return name, self._wanted(loader, name)

    def _wanted(self, loader: ModelLoader, name: str | None) -> WantedModel | None:
        """Raises an error for what no load would make answer: nothing is to be unloaded, or woken, for that."""
        wanted = loader.wanted(name, self._is_character)
        if wanted is None:
            return None
        asleep = self._engine.state.asleep
        if wanted.is_asleep and asleep is not None and not asleep.folder.is_dir():
            raise ApiError("api_model_gone", name=wanted.name, folder=str(asleep.folder))
        if wanted.adapter is not None:
            require_adapter(wanted.adapter, wanted.name)
        return wanted

    def _is_character(self, name: str) -> bool:
        try:
            return self._characters.find(name).character is not None
        except DeckError:
            return False

    def _percent(self) -> int:
        state = self._engine.state
        return int(state.fraction * 100) if state.phase == "loading" else 0

    async def _wait(self, task: asyncio.Task[None]) -> None:
        if self._num_waiting >= MAX_WAITING:
            raise ApiError("api_busy", limit=MAX_WAITING)
        self._num_waiting += 1
        try:
            # A client that leaves ends no load that others wait for.
            await asyncio.shield(task)
        finally:
            self._num_waiting -= 1

    async def _bring(self, wanted: WantedModel, bring: Callable[[WantedModel], None]) -> None:
        try:
            end_s = asyncio.get_running_loop().time() + TURN_S
            while True:
                state = self._engine.state
                if state.phase == "ready" and state.model == wanted.name:
                    return  # Somebody else brought it between the look and the turn.
                if state.phase == "loading":
                    # A person's load, or that of a start, is nobody's to end.
                    raise ApiError("api_loading", name=state.model or "", percent=self._percent())
                if not self._engine.running_answers:
                    break
                if asyncio.get_running_loop().time() > end_s:
                    raise ApiError("api_answering", name=self._engine.state.model or "", wanted=wanted.name)
                await asyncio.sleep(POLL_S)
            await asyncio.to_thread(bring, wanted)
        finally:
            self._bringing = None
