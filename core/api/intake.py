"""Requests that have a body: read within bounds, and worked on beside the event loop; of the large ones few at a time.

The loop counts what comes (ValueCounter) and never parses it. What a request asks for is made in threads of the API's
own, so that it can use up no other's.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar
from weakref import WeakValueDictionary

from core.api.errors import ApiError
from core.api.http_call import HttpCall
from core.api.json_text import MAX_VALUES
from core.api.schema import Translate, read_body
from core.api.strict import Strict
from core.common.plain_json import ValueCounter

Request = TypeVar("Request", bound=Strict)
Result = TypeVar("Result")
# Seconds for a body to come, and for a large one to get room.
BODY_S, ROOM_S = 30.0, 30.0
# Most bodies have fewer than LARGE_BYTES. Of larger ones at most MAX_LARGE are held at once, with all that is made of
# them. One client gets half of that, so that a slow sender does not shut out the others.
LARGE_BYTES = 2**16
MAX_LARGE, MAX_LARGE_OF_ONE = 4, 2
NUM_THREADS = 8
# Work that makes no prompt has threads of its own: a template or a tokenizer may keep the others for seconds.
NUM_SHORT_THREADS = 4


def give_back_memory() -> None:
    """Let the system have what is free: the C library keeps it, a hundred megabytes after a few large requests."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


class Intake:
    """Takes requests in, for the event loop."""

    def __init__(self, body_s: float = BODY_S) -> None:
        self._body_s = body_s
        self._threads = ThreadPoolExecutor(NUM_THREADS, "api")
        self._short_threads = ThreadPoolExecutor(NUM_SHORT_THREADS, "api-short")
        self._rooms = asyncio.Semaphore(MAX_LARGE)
        self._rooms_of: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        # A parser holds Python's lock to its end: between two of them others must get it.
        self._parsing = threading.Lock()

    async def take(
        self,
        call: HttpCall,
        kind: type[Request],
        work: Callable[[Request], Result],
        prepare: Callable[[Request], Awaitable[None]] | None = None,
        translate: Translate | None = None,
    ) -> Result:
        """What `work` makes, in a thread, of the request that the body is, once `prepare` is over for it. `translate`
        makes such a request of a body that another API knows. Raises ApiError, ClientGone, and as these do."""
        call.check_kind()
        async with AsyncExitStack() as held:
            # Handed over, so that it is gone before the memory is given back.
            bodies = [await self._read(call, held)]
            return await self._make(lambda: read_body(kind, bodies.pop(), translate), work, prepare)

    async def run(self, work: Callable[[], Result], undo: Callable[[Result], None] | None = None) -> Result:
        """What `work` comes to, in a thread. It is short, and waits for no request that is being taken.

        A thread cannot be cancelled: where nobody waits for the result any more, `undo` gets it, in a thread too.
        """
        loop = asyncio.get_running_loop()
        working = loop.run_in_executor(self._short_threads, work)

        def take_back(worked: asyncio.Future[Result]) -> None:
            if undo is not None and worked.exception() is None:
                loop.run_in_executor(self._short_threads, undo, worked.result())

        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            working.add_done_callback(take_back)
            raise

    async def _make(
        self,
        read: Callable[[], Request],
        work: Callable[[Request], Result],
        prepare: Callable[[Request], Awaitable[None]] | None,
    ) -> Result:
        loop = asyncio.get_running_loop()
        if prepare is None:
            return await loop.run_in_executor(self._threads, lambda: work(self._parse(read)))
        request = await loop.run_in_executor(self._threads, self._parse, read)
        await prepare(request)
        return await loop.run_in_executor(self._threads, work, request)

    def _parse(self, read: Callable[[], Request]) -> Request:
        with self._parsing:
            return read()

    async def _read(self, call: HttpCall, held: AsyncExitStack) -> bytes:
        """The whole body; a large one with room for it, which `held` gives back."""
        body, counter, is_large = bytearray(), ValueCounter(), False
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._body_s) as limit:
                async for piece in call.pieces():
                    counter.take(piece)
                    if counter.num_values > MAX_VALUES:
                        raise ApiError("api_values", limit=MAX_VALUES)
                    if not is_large and len(body) + len(piece) > LARGE_BYTES:
                        is_large, left_s = True, (limit.when() or 0.0) - loop.time()
                        # While there is no room the client is not to blame.
                        limit.reschedule(None)
                        await held.enter_async_context(self._room(call.client))
                        limit.reschedule(loop.time() + left_s)
                    body += piece
        except TimeoutError:
            raise ApiError("api_body_slow", seconds=int(self._body_s)) from None
        return bytes(body)

    @asynccontextmanager
    async def _room(self, client: str) -> AsyncIterator[None]:
        own = self._rooms_of.setdefault(client, asyncio.Semaphore(MAX_LARGE_OF_ONE))
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(ROOM_S):
                    for rooms in (own, self._rooms):
                        await held.enter_async_context(rooms)
            except TimeoutError:
                raise ApiError("api_large_busy") from None
            try:
                yield
            finally:
                asyncio.get_running_loop().run_in_executor(self._threads, give_back_memory)
