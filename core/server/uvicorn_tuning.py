"""Settings of this process's web server, uvicorn. Streamlit starts it and offers none of them."""

from __future__ import annotations

import asyncio
import asyncio.selector_events
import logging
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import uvicorn

log = logging.getLogger(__name__)
# A client that does not read could hold up the end of the process for ever.
SHUTDOWN_TIMEOUT_S = 3
POLL_S = 0.1
# A connection that asks for nothing for so long is closed, and one on which nobody takes the rest of an answer.
IDLE_S = 30.0
MAX_FILES = 2**16
# What is read of a connection at once. Each chunk of a body takes 20 µs of the event loop, and a chunk can have one
# byte: uvicorn's own quarter of a megabyte would then hold up the loop for a second.
RECEIVE_BYTES = 2**14


async def tune_server(end: Callable[[], None]) -> None:
    """Find the server of this process, tune it once it listens, and call `end` when it has to end.

    It waits for what is being answered, and tells nobody that it does.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if not isinstance(server, uvicorn.Server):
        log.warning("the web server is not the usual one; small answers may be slow")
        return
    allow_connections()
    await tune(server)
    idle = IdleConnections()
    checked_s = time.monotonic()
    while not server.should_exit:
        await asyncio.sleep(POLL_S)
        if time.monotonic() - checked_s > IDLE_S:
            checked_s = time.monotonic()
            idle.close_old(server.server_state.connections)
    end()


def allow_connections() -> None:
    """As many open files as this process may have: the usual 1024 are soon taken by connections that do nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class IdleConnections:
    """Connections that were waiting for a request, or closing, when they were looked at last."""

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[Any, object] = WeakKeyDictionary()

    def close_old(self, connections: Iterable[Any]) -> None:
        """Close those that wait as they did the last time. The server itself closes only what has asked before."""
        # A websocket has no cycle of request and answer, and may be silent for as long as it likes.
        for connection in [one for one in connections if hasattr(one, "cycle")]:
            cycle, transport = connection.cycle, connection.transport
            if not (transport.is_closing() or cycle is None or cycle.response_complete):
                self._seen.pop(connection, None)
            elif connection in self._seen and self._seen[connection] is cycle:
                # Not `close`: that waits until the other side has taken everything.
                transport.abort()
            else:
                self._seen[connection] = cycle


async def tune(server: uvicorn.Server) -> None:
    """Let it end in time, and send what is small at once.

    A response is written as a head and a body, and a stream in pieces. Streamlit makes its socket so that asyncio does
    not see that it is TCP, and leaves Nagle's algorithm on: the second piece then waits for the client's
    acknowledgement of the first, which takes 40 ms. New connections inherit the option from the socket that listens.
    """
    server.config.timeout_graceful_shutdown = SHUTDOWN_TIMEOUT_S
    asyncio.selector_events._SelectorTransport.max_size = RECEIVE_BYTES  # type: ignore[attr-defined]
    while not server.started:
        if server.should_exit:
            return
        await asyncio.sleep(POLL_S)
    for listening in server.servers:
        for one in listening.sockets:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
