"""Who is next of those that wait for the engine: people on the pages, then clients of the API by turns."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item")
# The client that stands for all pages: a person waits there.
PAGES = ""
# How many items of the pages go before a waiting client of the API: a page that asks without end must not shut it out.
MAX_PAGES_FIRST = 4
# How many items are taken past one that is not ready, such as one whose adapter has no place; then all wait for it.
MAX_PAST = 16


class FairQueue(Generic[Item]):
    """A queue with a line for each client. `PAGES` goes first, then the other clients by turns.

    A client has one turn, then stands behind the others that wait, whatever else it has in its line. Within a line,
    first come is first served.
    """

    def __init__(self) -> None:
        # By client, in the order of their turns; no line is empty.
        self._lines: OrderedDict[str, deque[Item]] = OrderedDict()
        self._num_pages_first = 0
        # An item that others were taken past, and how many.
        self._passed: Item | None = None
        self._num_past = 0

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def __iter__(self) -> Iterator[Item]:
        for line in self._lines.values():
            yield from line

    def add(self, item: Item, client: str = PAGES) -> None:
        self._lines.setdefault(client, deque()).append(item)

    def take(self) -> Item:
        """Take out the next item. Raises LookupError where nothing waits."""
        item = self.take_ready(lambda _: True)
        if item is None:
            raise LookupError("nothing waits")
        return item

    def take_ready(self, is_ready: Callable[[Item], bool]) -> Item | None:
        """Take out the next item that is ready; the others keep their turns. None where none is, or where MAX_PAST were
        taken past one that is not: those that run meanwhile end, and make it ready."""
        first, passes = None, False
        for client in self._clients():
            for item in self._lines[client]:
                if is_ready(item):
                    self._count(item, first, passes)
                    self._take_out(item, client)
                    return item
                first = item if first is None else first
                passes = passes or item is self._passed
                if passes and self._num_past >= MAX_PAST:
                    return None
        return None

    def _count(self, item: Item, first: Item | None, passes: bool) -> None:
        """`first` is the first item before `item` that is not ready; `passes`: the counted one is among them."""
        if passes:
            self._num_past += 1
        elif item is self._passed or self._passed is None:
            self._passed, self._num_past = first, 1

    def _take_out(self, item: Item, client: str) -> None:
        others_wait = len(self._lines) > 1
        self._num_pages_first = self._num_pages_first + 1 if client == PAGES and others_wait else 0
        line = self._lines.pop(client)
        line.remove(item)
        if line:
            self._lines[client] = line

    def remove(self, item: Item, client: str = PAGES) -> None:
        """Raises LookupError or ValueError where `item` does not wait in the line of `client`."""
        line = self._lines[client]
        line.remove(item)
        if item is self._passed:
            self._passed = None
        if not line:
            del self._lines[client]

    def _clients(self) -> list[str]:
        """Who waits, in the order of their turns."""
        others = [client for client in self._lines if client != PAGES]
        if PAGES not in self._lines:
            return others
        if self._num_pages_first < MAX_PAGES_FIRST:
            return [PAGES, *others]
        return [*others[:1], PAGES, *others[1:]]


class Turnstile:
    """Lets `width` tasks through at once, and the others by turns. For one event loop."""

    def __init__(self, width: int = 1) -> None:
        self.width = width
        self._num_inside = 0
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    @asynccontextmanager
    async def inside(self, client: str = PAGES) -> AsyncIterator[None]:
        await self._enter(client)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, client: str) -> None:
        if self._num_inside < self.width:
            self._num_inside += 1
            return
        mine = asyncio.get_running_loop().create_future()
        self._waiting.add(mine, client)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.cancelled():
                self._waiting.remove(mine, client)
            else:
                # The turn had come already, and goes to the next one.
                self._leave()
            raise

    def _leave(self) -> None:
        self._num_inside -= 1
        while len(self._waiting) and self._num_inside < self.width:
            self._num_inside += 1
            self._waiting.take().set_result(None)
