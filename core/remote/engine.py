"""The engine on another server, over OpenAI's API.

Every method may be called from any thread. A server that is lost is a state, and is looked for until it is back.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from core.common.errors import DeckError, EngineError
from core.engine.answer import Answer
from core.engine.engine_base import EngineBase
from core.engine.protocol import Conversation, EngineState, Failed, Finished, PromptStarted, TextChunk
from core.engine.request_options import PLAIN, RequestOptions
from core.engine.sampling_params import Sampling
from core.engine.thought import ThoughtRules
from core.remote.address import key_of
from core.remote.connection import Connection, ProbeInterval, facts_of
from core.remote.dialect import RemoteModel, request_for
from core.remote.http import HttpLimits, Server, loop
from core.remote.selection import RemoteSelection
from core.remote.stream import AnswerStream
from core.remote.token_count import RemoteTokenCount

log = logging.getLogger(__name__)
# Some servers take no more than 32 bits.
MAX_SEED = 2**31


class RemoteEngine(EngineBase):
    """Answers with one model of one server at a time."""

    def __init__(self, limits: HttpLimits | None = None, interval: ProbeInterval | None = None) -> None:
        super().__init__()
        self._limits, self._interval = limits or HttpLimits(), interval or ProbeInterval()
        self._connection: Connection | None = None
        # Only the loop's own thread uses these.
        self._tasks: dict[int, asyncio.Task[None]] = {}

    @property
    def silent_s(self) -> float:
        """A server that does not answer is lost, which `state` says."""
        return 0.0

    @property
    def server_counter(self) -> RemoteEngine:
        return self

    def connect(self, selection: RemoteSelection) -> None:
        """Begin to use the selected model, in place of whatever is connected; `state` tells how it goes."""
        with self._lock:
            self._end(EngineError("answer_model_unloaded"))
            server = Server(selection.address, key_of(selection.address), self._limits)
            self._connection = Connection(selection, server, self._interval, self._on_found, self._on_lost)
            self._set(EngineState("loading", selection.model, stage="connect", server=server.name))
            self._connection.start()

    def reconnect(self) -> None:
        """Look for the server now, with the key that is kept now."""
        with self._lock:
            if self._connection is not None:
                self.connect(self._connection.selection)

    def disconnect(self) -> None:
        """Let go of the server. Running answers keep what was written."""
        with self._lock:
            self._end(EngineError("answer_model_unloaded"))
            self._set(EngineState())

    def generate(
        self,
        prompt: str | tuple[int, ...],
        sampling: Sampling,
        continues: bool = False,
        client: str = "",
        thought: ThoughtRules | None = None,
        options: RequestOptions = PLAIN,
    ) -> Answer:
        """See Engine.generate. `continues` has no effect: a Conversation says itself whether its last turn is open, and
        any other prompt is gone on with. Raises EngineError while there is no connection and for what the server
        cannot do."""
        connection, state = self._connection, self._state
        if connection is None or connection.model is None or state.phase != "ready" or state.facts is None:
            # Not the state's own: whoever raises an error writes into it.
            raise EngineError(state.error.key, **state.error.params) if state.error else EngineError("nothing_loaded")
        if replace(options, shown=(), is_prompt_alone=False) != PLAIN:
            # These servers take them in other forms each, and their answers would have to be read for them.
            raise EngineError("remote_options", server=connection.server.name)
        prompt_tokens = connection.token_count.count_prompt(prompt)
        room = max(1, state.facts.context_tokens - prompt_tokens)
        asked = replace(
            sampling,
            max_new_tokens=min(sampling.max_new_tokens, room),
            seed=secrets.randbelow(MAX_SEED) if sampling.seed is None else sampling.seed % MAX_SEED,
        )
        server = connection.server.name
        path, body = request_for(connection.model, server, prompt, asked)
        is_open = isinstance(prompt, Conversation) and prompt.is_open
        stream = AnswerStream(server, asked, prompt_tokens, room < sampling.max_new_tokens, thought, is_open)
        with self._lock:
            if connection is not self._connection:
                raise EngineError("nothing_loaded")
            answer = Answer(next(self._numbers), self._cancel)
            self._keep(answer)
        request = _Request(connection, answer, stream, prompt, path, body, client)
        loop().call_soon_threadsafe(self._begin, request)
        return answer

    def count(self, text: str) -> int:
        """The tokens of a piece of a prompt, estimated."""
        connection = self._connection
        return RemoteTokenCount.guess(text) if connection is None else connection.token_count.count(text)

    def count_prompt(self, prompt: str | tuple[int, ...]) -> int:
        """The tokens of a whole prompt: asked of a server that counts, else estimated. Waits for the server."""
        connection = self._connection
        return RemoteTokenCount.guess(prompt) if connection is None else connection.token_count.count_prompt(prompt)

    def _on_found(self, connection: Connection, model: RemoteModel) -> None:
        server = connection.server.name
        facts = facts_of(model, connection.selection, server)
        with self._lock:
            if connection is self._connection and (self._state.phase != "ready" or self._state.facts != facts):
                self._set(EngineState("ready", model.name, fraction=1.0, facts=facts, server=server))

    def _on_lost(self, connection: Connection, error: EngineError) -> None:
        server = connection.server.name
        with self._lock:
            is_known = self._state.error is not None and _is_same(self._state.error, error)
            if connection is not self._connection or is_known:
                return
            log.warning("the connection to %s: %s", server, error)
            self._set(EngineState("failed", connection.selection.model, error=error, server=server))

    def _end(self, error: DeckError) -> None:
        connection, self._connection = self._connection, None
        for answer in self._forget_all():
            answer.apply(Failed(answer.request, error))
            self._cancel(answer.request)
        if connection is not None:
            connection.stop()

    def _cancel(self, number: int) -> None:
        loop().call_soon_threadsafe(self._cancel_task, number)

    # The loop's thread ----------------------------------------------------------------------------------------------

    def _cancel_task(self, number: int) -> None:
        if (task := self._tasks.get(number)) is not None:
            task.cancel()

    def _begin(self, request: _Request) -> None:
        task = self._tasks[request.answer.request] = loop().create_task(request.run())
        # Also where the task was cancelled before it began to run.
        task.add_done_callback(lambda _: self._finish(request))

    def _finish(self, request: _Request) -> None:
        number = request.answer.request
        request.answer.apply(Finished(number, "cancelled", request.stream.stats()))
        del self._tasks[number]
        with self._lock:
            self._forget(number)


@dataclass(frozen=True, slots=True)
class _Request:
    """One answer on its way from the server."""

    connection: Connection
    answer: Answer
    stream: AnswerStream
    prompt: str | tuple[int, ...]
    path: str
    body: dict[str, Any]
    client: str

    async def run(self) -> None:
        server, answer, number = self.connection.server.name, self.answer, self.answer.request
        try:
            async with self.connection.answering(self.client):
                await self._read()
            answer.apply(Finished(number, self.stream.reason or "end", self.stream.stats(), self.stream.stop))
            self.connection.token_count.learn(self.prompt, self.stream.prompt_tokens)
        except asyncio.CancelledError:
            self._append(self.stream.flush())
            answer.apply(Finished(number, "cancelled", self.stream.stats()))
        except EngineError as error:
            self._append(self.stream.flush())
            answer.apply(Failed(number, error))
            self.connection.probe_now()
        except Exception as error:  # The task's edge: whatever it is becomes a sentence.
            log.exception("an answer from %s failed", server)
            answer.apply(Failed(number, EngineError("remote_broken", server=server, why=type(error).__name__)))

    async def _read(self) -> None:
        async with aclosing(self.connection.server.stream(self.path, self.body)) as events:
            async for event in events:
                if self.answer.phase == "queued":
                    self.answer.apply(PromptStarted(self.answer.request, self.stream.prompt_tokens, 0))
                self._append(self.stream.push(event))
                if self.stream.reason == "stop":
                    return
        if self.stream.reason is None:
            raise EngineError("remote_broken", server=self.connection.server.name, why="EOF")

    def _append(self, text: str) -> None:
        if text:
            self.answer.apply(TextChunk(self.answer.request, text, self.stream.num_tokens))


def _is_same(one: DeckError, other: DeckError) -> bool:
    return (one.key, one.params) == (other.key, other.params)
