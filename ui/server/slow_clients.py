"""uvicorn's HTTP protocol with a time limit for clients that never finish asking.

uvicorn waits for ever for the rest of a request's header: a few thousand connections that send a byte now and then
would take every file that this process may open. A connection that is being answered, or was handed to a websocket, is
left alone; the reader of a body sets its own limit.
"""

from __future__ import annotations

import asyncio
import resource

import uvicorn.config
from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEADER_S = 20.0
ANSWERING = object()


class ImpatientProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # uvicorn chooses it as it is imported.
    """Looks at its connection every HEADER_S seconds, and ends it where nothing was asked since the last look."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        # The request that was answered last when we looked; there is none before the first.
        self._answered: object = None
        self.loop.call_later(HEADER_S, self._look)

    def _look(self) -> None:
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            return
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self.cycle is self._answered:
            self.transport.close()
            return
        self._answered = self.cycle if is_idle else ANSWERING
        self.loop.call_later(HEADER_S, self._look)


def limit_slow_clients() -> None:
    """Before the server starts: let it use this protocol, and as many files as the system grants."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:ImpatientProtocol"
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
