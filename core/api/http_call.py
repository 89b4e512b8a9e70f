"""One request on its connection: its body within limits, one answer or a stream of events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from core.access.requests import language_of
from core.api.dialects.dialect import OPENAI, Dialect
from core.api.errors import ApiError, shape_of
from core.api.json_text import to_json
from core.common.errors import DeckError

# A context of 128k tokens is under 1 MB of text; JSON may write each of its characters as six.
MAX_BODY_BYTES = 4 * 2**20
# The rest of a refused body is read for at most this long, and dropped: most clients read no answer before they have
# sent everything.
LINGER_S, MAX_LINGER_BYTES = 2.0, 32 * 2**20
MAX_UNREAD_BYTES = 2**16
# A client that takes nothing of a stream for this long has left: its answer holds a slot that others wait for.
STALL_S = 60.0
# nginx logs this status for a client that went away. Nobody sends it.
CLIENT_GONE = 499
MAX_SHOWN_CHARS, MAX_METHOD_CHARS = 200, 20
# How often a stream asks whether its key still opens anything.
RECHECK_S = 1.0
STREAM_HEADERS = {
    "cache-control": "no-cache",
    # nginx would keep events back until it has a buffer full of them.
    "x-accel-buffering": "no",
}
Result = TypeVar("Result")


class ClientGone(Exception):
    """There is nobody left to answer."""


class HttpCall:
    """A request and its answer.

    `status` is the answer's, None before it. `is_streaming` is true once events go out: then no status can be sent.
    `recheck` raises ApiError where the request would be refused by now, such as for a revoked key. `owner` is whose key
    the request brought, "" where it needed none; `client` is who gets a turn. `ending` is set when the process is about
    to end. `dialect` is how the API speaks whose path was asked for.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        ending: asyncio.Event,
        stall_s: float = STALL_S,
        dialect: Dialect = OPENAI,
    ) -> None:
        self.request = Request(scope, receive)
        self.client = ""
        self.status: int | None = None
        self.owner = ""
        self.is_streaming = False
        self._scope, self._receive, self._send_on = scope, receive, send
        self._dialect = dialect
        self._ending, self._stall_s = ending, stall_s
        self._is_body_read = False
        self.recheck: Callable[[], Awaitable[object]] | None = None
        self._checked_s = time.monotonic()

    @property
    def language(self) -> str:
        return language_of(self.request)

    def check_kind(self) -> None:
        """Raises ApiError for a body that is not JSON as it stands."""
        kind = self.request.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != "application/json":
            # Also what keeps the pages of others from asking: a browser sends JSON elsewhere only when it is allowed.
            raise ApiError("api_content_type", kind=kind[:MAX_SHOWN_CHARS] or "-")
        coding = self.request.headers.get("content-encoding", "identity")
        if coding.strip().lower() not in ("identity", ""):
            raise ApiError("api_content_encoding", coding=coding[:MAX_SHOWN_CHARS])

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises ApiError for one that is too large, whatever it says of its size, ClientGone."""
        length = self.request.headers.get("content-length", "")
        num_bytes = int(length[:20]) if length.isdecimal() else 0
        try:
            if num_bytes <= MAX_BODY_BYTES:
                num_bytes = 0
                async for piece in self.request.stream():
                    num_bytes += len(piece)
                    if num_bytes > MAX_BODY_BYTES:
                        break
                    yield piece
                self._is_body_read = num_bytes <= MAX_BODY_BYTES
        except ClientDisconnect:
            raise ClientGone from None
        if num_bytes > MAX_BODY_BYTES:
            raise ApiError("api_body_large", limit_mib=MAX_BODY_BYTES // 2**20)

    async def json(self, content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        await self.text(to_json(content), "application/json", status, headers)

    async def text(self, text: str, kind: str, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        if status == 200:
            await self._check_again()
        self.status = status
        if self._has_more():
            headers = {**(headers or {}), "connection": "close"}
        body = text.encode("utf-8", "replace")
        await Response(body, status, headers, kind)(self._scope, self._receive, self._send)

    async def refuse(self, error: DeckError, headers: Mapping[str, str] | None = None) -> None:
        """Send what is wrong: as the answer, or as the last event of a stream that has begun."""
        body, shape = self._dialect.error_body(error, self.language), shape_of(error)
        if self.is_streaming:
            for frame in self._dialect.error_frames(body, self._ending.is_set()):
                await self.frame(frame)
            await self.end_stream()
            return
        headers = {**(headers or {})}
        if shape.retry_s is not None:
            headers["retry-after"] = str(shape.retry_s)
        if shape.status == 401:
            headers["www-authenticate"] = "Bearer"
        if shape.status == 408:
            # What is left of the body is not waited for.
            headers["connection"] = "close"
        elif self._has_more():
            await self._refuse_early(to_json(body), shape.status, headers)
            return
        await self.json(body, shape.status, headers)

    async def refuse_path(self) -> None:
        """Answer that nothing is at the path."""
        await self.refuse(ApiError("api_path", path=self.request.scope["path"][:MAX_SHOWN_CHARS]))

    async def refuse_method(self, methods: Iterable[str]) -> None:
        """Answer that the path takes other `methods`."""
        allowed = ", ".join(methods)
        error = ApiError("api_method", method=self.request.method[:MAX_METHOD_CHARS], allowed=allowed)
        await self.refuse(error, {"allow": allowed})

    def _has_more(self) -> bool:
        """Whether more of a body may come than a server throws away without noticing."""
        if self._is_body_read:
            return False
        length = self.request.headers.get("content-length", "")
        is_long = length.isdecimal() and (len(length) > 10 or int(length) > MAX_UNREAD_BYTES)
        return is_long or "transfer-encoding" in self.request.headers

    async def _refuse_early(self, text: str, status: int, headers: Mapping[str, str]) -> None:
        """Answer, and give the client time to send the rest and to read why before the connection ends."""
        self.status = status
        body = text.encode("utf-8", "replace")
        told = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        await self._start(status, {**told, **headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        num_bytes = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while num_bytes < MAX_LINGER_BYTES:
                    message = await self._receive()
                    if message["type"] != "http.request" or not message.get("more_body"):
                        break
                    num_bytes += len(message.get("body", b""))
        await self.end_stream()

    async def start_stream(self) -> None:
        self.status, self.is_streaming = 200, True
        await self._start(200, {"content-type": self._dialect.stream_type, **STREAM_HEADERS})

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def _check_again(self) -> None:
        now_s = time.monotonic()
        if self.recheck is not None and now_s - self._checked_s > RECHECK_S:
            recheck, self.recheck, self._checked_s = self.recheck, None, now_s
            await recheck()
            self.recheck = recheck

    async def frame(self, text: str) -> None:
        """Send a part of a stream, as it stands on the wire."""
        await self._check_again()
        await self._send_part(text)

    async def sign_of_life(self) -> None:
        """A line that clients skip, so that nobody on the way takes a long wait for a dead connection."""
        await self._check_again()
        if self._dialect.waiting:
            await self._send_part(self._dialect.waiting)

    async def end_stream(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_part(self, text: str) -> None:
        body = text.encode("utf-8", "replace")
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        """Hand over to the server, which waits while the client takes nothing. Raises ClientGone."""
        try:
            async with asyncio.timeout(self._stall_s):
                await self._send_on(message)
        except TimeoutError:
            raise ClientGone from None

    async def unless_gone(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What `work` returns. When the client goes, cancel it and raise ClientGone. The body has to be read before."""
        doing, leaving = asyncio.create_task(work), asyncio.create_task(self._gone())
        try:
            await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                raise ClientGone
            return doing.result()
        finally:
            leaving.cancel()
            doing.cancel()

    async def unless_ending(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`. When the process is about to end, cancel it and raise ApiError.

        A whole answer that goes out already is left to its end.
        """
        if self._ending.is_set():
            work.close()
            raise ApiError("api_ending")
        doing, ending = asyncio.create_task(work), asyncio.create_task(self._ending.wait())
        try:
            await asyncio.wait({doing, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done() and (self.status is None or self.is_streaming):
                raise ApiError("api_ending")
            await doing
        finally:
            ending.cancel()
            doing.cancel()
            # What it was about to send comes before anything else, or not at all.
            await asyncio.wait({doing})

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
