"""What the web server is told that runs this process: uvicorn, started by Streamlit, which offers no such settings."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket

import uvicorn

log = logging.getLogger(__name__)
# An API client's stream could last for ever, and with it the end of the process.
END_S = 3
POLL_S = 0.05


async def tune_server() -> None:
    """Find the server of this process, and tune it once it listens."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(server, uvicorn.Server):
        await tune(server)
    else:
        log.warning("the web server is not the usual one; small answers may be slow")


async def tune(server: uvicorn.Server) -> None:
    """Let it end in time, and send what is small at once.

    A response is written as a head and a body, and a stream in pieces. Streamlit makes its socket so that asyncio does
    not see that it is TCP, and leaves Nagle's algorithm on: the second piece then waits for the client's
    acknowledgement of the first, which takes 40 ms. New connections inherit the option from the socket that listens.
    """
    server.config.timeout_graceful_shutdown = END_S
    while not server.started:
        if server.should_exit:
            return
        await asyncio.sleep(POLL_S)
    for listening in server.servers:
        for one in listening.sockets:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
