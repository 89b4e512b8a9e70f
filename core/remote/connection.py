"""The connection to one model of another server, which is probed every few seconds, lost and found."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from core.common.errors import EngineError
from core.engine.fair_queue import Turnstile
from core.engine.protocol import ModelFacts, RemoteFacts
from core.remote.dialect import RemoteModel, read_models
from core.remote.http import HttpLimits, Server, loop, wait_for
from core.remote.selection import RemoteSelection
from core.remote.token_count import RemoteTokenCount

log = logging.getLogger(__name__)
# Where neither the server nor a person says how long the context is.
ASSUMED_CONTEXT_TOKENS = 4096
# How many answers a server is given at once; it has a queue of its own.
NUM_SLOTS = 64
# Errors that another try does not cure.
FINAL = ("remote_key", "remote_not_openai", "remote_redirect", "remote_no_route")


@dataclass(frozen=True, slots=True)
class ProbeInterval:
    """Seconds between two probes of a server: while it is there; once it is lost, from `retry_s` up to `longest_s`."""

    check_s: float = 10.0
    retry_s: float = 1.0
    longest_s: float = 30.0


def list_models(address: str, key: str | None = None, limits: HttpLimits | None = None) -> tuple[RemoteModel, ...]:
    """The models of the server at `address`. Raises EngineError."""

    async def ask() -> tuple[RemoteModel, ...]:
        server = Server(address, key, limits)
        try:
            return await _models(server)
        finally:
            await server.close()

    return wait_for(ask())


async def _models(server: Server) -> tuple[RemoteModel, ...]:
    try:
        return read_models(await server.ask("/v1/models"), server.name)
    except EngineError as error:
        if error.key in ("remote_garbled", "remote_no_route", "remote_too_much"):
            raise EngineError("remote_not_openai", server=server.name) from None
        raise


class Connection:
    """One server that is probed every few seconds, and what is known of its model."""

    def __init__(
        self,
        selection: RemoteSelection,
        server: Server,
        interval: ProbeInterval,
        on_found: Callable[[Connection, RemoteModel], None],
        on_lost: Callable[[Connection, EngineError], None],
    ) -> None:
        self.selection, self.server, self._interval = selection, server, interval
        self.model: RemoteModel | None = None
        self.token_count = RemoteTokenCount(server, lambda: self.model)
        self._on_found, self._on_lost = on_found, on_lost
        self._wake = asyncio.Event()
        self._num_running, self._is_idle = 0, asyncio.Event()
        self._is_idle.set()
        self._turnstile = Turnstile(NUM_SLOTS)
        self._watching: asyncio.Task[None] | None = None
        self._is_stopped = False

    def start(self) -> None:
        loop().call_soon_threadsafe(self._begin)

    def stop(self) -> None:
        """Probe no more and let go of the server, whether or not the first probe has begun."""
        loop().call_soon_threadsafe(self._end)

    def _begin(self) -> None:
        if not self._is_stopped:
            self._watching = loop().create_task(self._watch())

    def _end(self) -> None:
        self._is_stopped = True
        if self._watching is not None:
            self._watching.cancel()
        self._closing = loop().create_task(self.server.close())

    @asynccontextmanager
    async def answering(self, client: str = "") -> AsyncIterator[None]:
        """Around each answer of a client ("" for the pages). The answer waits for its turn while the server writes as
        many as it is given at once.

        A server that writes an answer is not probed: the answer's end shows how it is, and a probe makes some servers
        break the answer off.
        """
        self._num_running += 1
        self._is_idle.clear()
        try:
            self._turnstile.width = 1 if self.model is not None and self.model.capabilities.is_single else NUM_SLOTS
            async with self._turnstile.inside(client):
                yield
        finally:
            self._num_running -= 1
            if self._num_running == 0:
                self._is_idle.set()

    def probe_now(self) -> None:
        """Probe at once. For the loop's own thread."""
        self._wake.set()

    async def _watch(self) -> None:
        pause_s = self._interval.retry_s
        while True:
            self._wake.clear()
            await self._is_idle.wait()
            error = await self._probe()
            if error is None:
                pause_s, wait_s = self._interval.retry_s, self._interval.check_s
            else:
                pause_s, wait_s = min(2 * pause_s, self._interval.longest_s), pause_s
            try:
                async with asyncio.timeout(None if error is not None and error.key in FINAL else wait_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _probe(self) -> EngineError | None:
        """Ask whether the server has the model, and report it; the error, if there is one."""
        try:
            self.model = self._pick(await _models(self.server))
            self._on_found(self, self.model)
            return None
        except EngineError as error:
            found = error
        except Exception as error:  # The task's edge: the next probe may go well.
            log.exception("a probe of %s failed", self.server.name)
            found = EngineError("remote_broken", server=self.server.name, why=type(error).__name__)
        self._on_lost(self, found)
        return found

    def _pick(self, models: tuple[RemoteModel, ...]) -> RemoteModel:
        for model in models:
            if model.name == self.selection.model:
                return model
        names = ", ".join(model.name for model in models[:3]) or "-"
        raise EngineError("remote_no_model", server=self.server.name, model=self.selection.model, names=names)


def facts_of(model: RemoteModel, selection: RemoteSelection, server: str) -> ModelFacts:
    capabilities = model.capabilities
    context = model.context_tokens or selection.context_tokens or ASSUMED_CONTEXT_TOKENS
    return ModelFacts(
        name=model.name,
        architecture="",
        device=server,
        kernel="remote",
        kernel_reason="remote",
        context_tokens=context,
        num_slots=NUM_SLOTS,
        load_s=0.0,
        weights_bytes=0,
        cache_bytes=0,
        remote=RemoteFacts(
            server=server,
            software=capabilities.software,
            is_context_told=model.context_tokens is not None,
            is_context_chosen=model.context_tokens is None and selection.context_tokens is not None,
            counts_tokens=bool(capabilities.count_path),
            can_continue=capabilities.can_continue,
            ignored=capabilities.ignored,
            takes_variables=capabilities.takes_variables,
        ),
    )
