"""Closes what was opened in a session once that session ends: websockets, long downloads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.types import Message, Receive, Send

POLICY_VIOLATION = 1008
# How often the session of an idle socket is checked, and at most that of a busy one.
IDLE_S, BUSY_S = 2.0, 0.25


class SessionWatch:
    """`is_still_allowed` says whether the session that opened the connection is still valid."""

    def __init__(self, is_still_allowed: Callable[[], bool]) -> None:
        self._is_still = is_still_allowed
        self._looked_s = time.monotonic()
        self._is_over = False

    def receiving(self, receive: Receive, send: Send) -> Receive:
        """`receive` of a websocket, which closes it once the session has ended."""

        async def receive_while_let_in() -> Message:
            coming = asyncio.ensure_future(receive())
            try:
                while not self._is_over:
                    done, _ = await asyncio.wait({coming}, timeout=IDLE_S)
                    if done and coming.result()["type"] != "websocket.receive":
                        return coming.result()
                    if not self._is_still():
                        await self._close(send)
                    elif done:
                        return coming.result()
            finally:
                coming.cancel()
            return {"type": "websocket.disconnect", "code": POLICY_VIOLATION}

        return receive_while_let_in

    def sending(self, send: Send) -> Send:
        """`send`, which sends nothing once the session has ended. A response is then cut off: the server closes a
        connection whose response is not whole."""

        async def send_while_let_in(message: Message) -> None:
            kind = message["type"]
            if not self._is_over and kind in ("websocket.send", "http.response.body"):
                now_s = time.monotonic()
                if now_s - self._looked_s > BUSY_S:
                    self._looked_s = now_s
                    if not self._is_still():
                        await self._close(send if kind == "websocket.send" else None)
            if not self._is_over:
                await send(message)
            elif kind == "websocket.send":
                raise OSError("signed out")

        return send_while_let_in

    async def _close(self, send: Send | None) -> None:
        if not self._is_over:
            self._is_over = True
            if send is not None:
                await send({"type": "websocket.close", "code": POLICY_VIOLATION})
