"""One request on its connection: its body within limits, one answer or a stream of events; knows no model."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from core.access.requests import language_of
from core.api.errors import ApiError, body_of, shape_of
from core.errors import DeckError

# A context of 128k tokens is under 1 MB of text; JSON may write each of its characters as six.
MAX_BODY_BYTES = 4 * 2**20
BODY_S = 30.0
# What others write into their logs for a client that went away; it is never sent.
CLIENT_GONE = 499
# How often a stream asks whether its key still opens anything.
RECHECK_S = 1.0
SSE_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    # nginx would keep events back until it has a buffer full of them.
    "x-accel-buffering": "no",
}
Result = TypeVar("Result")


class ClientGone(Exception):
    """There is nobody left to answer."""


class Call:
    """`status` is what was answered, None before. `is_streaming` once events go out: then no status can be sent.
    `recheck` raises ApiError where the request would be refused by now, such as for a key that was revoked. `owner` is
    whose key the request brought, "" where it needed none.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, body_s: float = BODY_S) -> None:
        self.request = Request(scope, receive)
        self.status: int | None = None
        self.owner = ""
        self.is_streaming = False
        self._scope, self._receive, self._send = scope, receive, send
        self._body_s = body_s
        self.recheck: Callable[[], Awaitable[object]] | None = None
        self._checked_s = time.monotonic()

    @property
    def language(self) -> str:
        return language_of(self.request)

    async def body(self) -> bytes:
        """The whole body, which has to be JSON. Raises ApiError for one that is too large or too slow, ClientGone."""
        kind = self.request.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != "application/json":
            # Also what keeps the pages of others from asking: a browser sends JSON elsewhere only when it is allowed.
            raise ApiError("api_content_type", kind=kind or "-")
        length = self.request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > MAX_BODY_BYTES:
            raise ApiError("api_body_large", limit_mib=MAX_BODY_BYTES // 2**20)
        try:
            return await asyncio.wait_for(self._read_body(), self._body_s)
        except TimeoutError:
            raise ApiError("api_body_slow", seconds=int(self._body_s)) from None
        except ClientDisconnect:
            raise ClientGone from None

    async def _read_body(self) -> bytes:
        body = bytearray()
        async for chunk in self.request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise ApiError("api_body_large", limit_mib=MAX_BODY_BYTES // 2**20)
        return bytes(body)

    async def json(self, content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        if status == 200:
            await self._check_again()
        await self.text(to_json(content), "application/json", status, headers)

    async def text(self, text: str, kind: str, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        await Response(text, status, headers, kind)(self._scope, self._receive, self._send)

    async def refuse(self, error: DeckError, headers: Mapping[str, str] | None = None) -> None:
        """Say what is wrong: as the answer, or inside a stream that has begun, which ends with it."""
        body, shape = body_of(error, self.language), shape_of(error)
        if self.is_streaming:
            await self.event(to_json(body))
            await self.end_stream()
            return
        headers = {**(headers or {})}
        if shape.retry_s is not None:
            headers["retry-after"] = str(shape.retry_s)
        if shape.status == 401:
            headers["www-authenticate"] = "Bearer"
        if shape.status in (408, 413):
            # What is left of the body is not waited for.
            headers["connection"] = "close"
        await self.json(body, shape.status, headers)

    async def start_stream(self) -> None:
        self.status, self.is_streaming = 200, True
        headers = [(name.encode(), value.encode()) for name, value in SSE_HEADERS.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _check_again(self) -> None:
        now_s = time.monotonic()
        if self.recheck is not None and now_s - self._checked_s > RECHECK_S:
            recheck, self.recheck, self._checked_s = self.recheck, None, now_s
            await recheck()
            self.recheck = recheck

    async def event(self, data: str) -> None:
        await self._check_again()
        await self._send_part(f"data: {data}\n\n")

    async def sign_of_life(self) -> None:
        """A line that clients skip, so that nobody on the way takes a long wait for a dead connection."""
        await self._check_again()
        await self._send_part(": waiting\n\n")

    async def end_stream(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_part(self, text: str) -> None:
        await self._send({"type": "http.response.body", "body": text.encode(), "more_body": True})

    async def unless_gone(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What `work` comes to; it is cancelled, and ClientGone raised, when the client goes. The body was read."""
        doing, leaving = asyncio.create_task(work), asyncio.create_task(self._gone())
        try:
            await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                raise ClientGone
            return doing.result()
        finally:
            leaving.cancel()
            doing.cancel()

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


def to_json(content: object) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
