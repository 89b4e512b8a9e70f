"""The engine on another server: the same interface as Runner over OpenAI's API; knows no chats and no pages.

Everything here may be called from any thread. A server that is lost is a state, and is looked for until it is back.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import threading
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from core.common.errors import DeckError, EngineError
from core.engine.answer import Answer
from core.engine.protocol import EngineState, Failed, Finished, PromptStarted, TextChunk
from core.engine.sampling_params import Sampling
from core.remote.address import key_of
from core.remote.connection import Link, Pace, facts_of
from core.remote.dialect import RemoteModel, request_for
from core.remote.http import Limits, Server, loop
from core.remote.selection import Choice
from core.remote.stream import Incoming
from core.remote.token_count import Counting

log = logging.getLogger(__name__)
# Some servers take no more than 32 bits.
MAX_SEED = 2**31


class RemoteEngine:
    """Answers with one model of one server at a time. `state` is what pages show."""

    def __init__(self, limits: Limits | None = None, pace: Pace | None = None) -> None:
        self._limits, self._pace = limits or Limits(), pace or Pace()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._state = EngineState()
        self._link: Link | None = None
        # Never changed, always replaced: whoever reads it needs no lock.
        self._answers: dict[int, Answer] = {}
        # Only the loop's own thread looks at these.
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._numbers = itertools.count(1)

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def running_answers(self) -> list[Answer]:
        """The answers that are waited for or being written, oldest first."""
        return [answer for answer in self._answers.values() if answer.is_running]

    @property
    def silent_s(self) -> float:
        """A server that does not answer is lost, which `state` says."""
        return 0.0

    @property
    def server_counter(self) -> RemoteEngine:
        return self

    def connect(self, choice: Choice) -> None:
        """Begin to use the chosen model, in place of whatever is connected; `state` tells how it goes."""
        with self._lock:
            self._end(EngineError("answer_model_unloaded"))
            server = Server(choice.address, key_of(choice.address), self._limits)
            self._link = Link(choice, server, self._pace, self._found, self._lost)
            self._set(EngineState("loading", choice.model, stage="connect", server=server.name))
            self._link.start()

    def reconnect(self) -> None:
        """Look for the server now, with the key that is kept now."""
        with self._lock:
            if self._link is not None:
                self.connect(self._link.choice)

    def disconnect(self) -> None:
        """Let go of the server. Running answers keep what was written."""
        with self._lock:
            self._end(EngineError("answer_model_unloaded"))
            self._set(EngineState())

    def generate(
        self, prompt: str | tuple[int, ...], sampling: Sampling, continues: bool = False, client: str = ""
    ) -> Answer:
        """See Engine.generate. `continues` has no effect: a Conversation says itself whether its last turn is open, and
        any other prompt is gone on with. Raises EngineError while there is no connection and for what the server
        cannot do."""
        link, state = self._link, self._state
        if link is None or link.model is None or state.phase != "ready" or state.facts is None:
            # Not the state's own: whoever raises an error writes into it.
            raise EngineError(state.error.key, **state.error.params) if state.error else EngineError("nothing_loaded")
        prompt_tokens = link.counting.count_prompt(prompt)
        room = max(1, state.facts.context_tokens - prompt_tokens)
        asked = replace(
            sampling,
            max_new_tokens=min(sampling.max_new_tokens, room),
            seed=secrets.randbelow(MAX_SEED) if sampling.seed is None else sampling.seed % MAX_SEED,
        )
        path, body = request_for(link.model, link.server.name, prompt, asked)
        incoming = Incoming(link.server.name, asked, prompt_tokens, is_clipped=room < sampling.max_new_tokens)
        with self._lock:
            if link is not self._link:
                raise EngineError("nothing_loaded")
            answer = Answer(next(self._numbers), self._cancel)
            self._answers = self._answers | {answer.request: answer}
        asking = _Asking(link, answer, incoming, prompt, path, body, client)
        loop().call_soon_threadsafe(self._begin, asking)
        return answer

    def count(self, text: str) -> int:
        """The tokens of a piece of a prompt, estimated."""
        link = self._link
        return Counting.guess(text) if link is None else link.counting.count(text)

    def count_prompt(self, prompt: str | tuple[int, ...]) -> int:
        """The tokens of a whole prompt: asked of a server that counts, else estimated. Waits for the server."""
        link = self._link
        return Counting.guess(prompt) if link is None else link.counting.count_prompt(prompt)

    def wait_while_loading(self, timeout_s: float | None = None) -> EngineState:
        """Wait for the end of the first look at the server, at most `timeout_s`; the state as it then is."""
        with self._changed:
            self._changed.wait_for(lambda: self._state.phase != "loading", timeout_s)
            return self._state

    def _set(self, state: EngineState) -> None:
        self._state = state
        self._changed.notify_all()

    def _found(self, link: Link, model: RemoteModel) -> None:
        facts = facts_of(model, link.choice, link.server.name)
        with self._lock:
            if link is self._link and (self._state.phase != "ready" or self._state.facts != facts):
                self._set(EngineState("ready", model.name, fraction=1.0, facts=facts, server=link.server.name))

    def _lost(self, link: Link, error: EngineError) -> None:
        with self._lock:
            if link is not self._link or (self._state.error is not None and _same(self._state.error, error)):
                return
            log.warning("the connection to %s: %s", link.server.name, error)
            self._set(EngineState("failed", link.choice.model, error=error, server=link.server.name))

    def _end(self, error: DeckError) -> None:
        link, self._link = self._link, None
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            answer.apply(Failed(answer.request, error))
            self._cancel(answer.request)
        if link is not None:
            link.stop()

    def _cancel(self, request: int) -> None:
        loop().call_soon_threadsafe(self._cancel_task, request)

    def _cancel_task(self, request: int) -> None:
        if (task := self._tasks.get(request)) is not None:
            task.cancel()

    def _begin(self, asking: _Asking) -> None:
        task = self._tasks[asking.answer.request] = loop().create_task(asking.run())
        # Also where the task was cancelled before it began to run.
        task.add_done_callback(lambda _: self._finish(asking))

    def _finish(self, asking: _Asking) -> None:
        request = asking.answer.request
        asking.answer.apply(Finished(request, "cancelled", asking.incoming.stats()))
        del self._tasks[request]
        with self._lock:
            self._answers = {number: answer for number, answer in self._answers.items() if number != request}


@dataclass(frozen=True, slots=True)
class _Asking:
    """One answer on its way from the server."""

    link: Link
    answer: Answer
    incoming: Incoming
    prompt: str | tuple[int, ...]
    path: str
    body: dict[str, Any]
    client: str

    async def run(self) -> None:
        server, answer, request = self.link.server, self.answer, self.answer.request
        try:
            async with self.link.answering(self.client):
                await self._read()
            answer.apply(Finished(request, self.incoming.reason or "end", self.incoming.stats()))
            self.link.counting.learn(self.prompt, self.incoming.prompt_tokens)
        except asyncio.CancelledError:
            self._say(self.incoming.flush())
            answer.apply(Finished(request, "cancelled", self.incoming.stats()))
        except EngineError as error:
            self._say(self.incoming.flush())
            answer.apply(Failed(request, error))
            self.link.look_now()
        except Exception as error:  # The task's edge: whatever it is becomes a sentence.
            log.exception("an answer from %s failed", server.name)
            answer.apply(Failed(request, EngineError("remote_broken", server=server.name, why=type(error).__name__)))

    async def _read(self) -> None:
        async with aclosing(self.link.server.stream(self.path, self.body)) as events:
            async for event in events:
                if self.answer.phase == "queued":
                    self.answer.apply(PromptStarted(self.answer.request, self.incoming.prompt_tokens, 0))
                self._say(self.incoming.take(event))
                if self.incoming.reason == "stop":
                    return
        if self.incoming.reason is None:
            raise EngineError("remote_broken", server=self.link.server.name, why="EOF")

    def _say(self, text: str) -> None:
        if text:
            self.answer.apply(TextChunk(self.answer.request, text, self.incoming.num_tokens))


def _same(one: DeckError, other: DeckError) -> bool:
    return (one.key, one.params) == (other.key, other.params)
