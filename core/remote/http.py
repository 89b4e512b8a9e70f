"""HTTP with one server of OpenAI's API: one address, one key, a limit to everything.

All of it runs in one event loop in a thread of its own: a cancelled task lets go of its connection at once, whatever it
waits for.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import urllib.parse
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import httpx2

from core.common.errors import EngineError
from core.common.plain_json import load_json
from core.common.urls import host_name, is_private_way
from core.common.values import printable

MAX_WHY_CHARS = 300
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """`whole_*`: for an answer that comes whole. `first_s`: for the first bytes of a streamed answer, whose prompt may
    wait in the server's queue. `stall_s`: between two chunks of it. `line_bytes`: for one line of it."""

    connect_s: float = 5.0
    whole_s: float = 15.0
    first_s: float = 600.0
    stall_s: float = 120.0
    whole_bytes: int = 8 * 2**20
    line_bytes: int = 2**20


@cache
def loop() -> asyncio.AbstractEventLoop:
    """The one loop of this process, which starts with the first call."""
    made = asyncio.new_event_loop()
    threading.Thread(target=made.run_forever, name="remote-engine", daemon=True).start()
    return made


def wait_for(work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` in the loop and wait for it. For any thread but the loop's own."""
    return asyncio.run_coroutine_threadsafe(work, loop()).result()


class Server:
    """One server at `address`. Redirects are not followed: `key` is shown to this server alone."""

    def __init__(self, address: str, key: str | None = None, limits: HttpLimits | None = None) -> None:
        self.address = address
        self.name = host_name(address)
        self.limits = limits or HttpLimits()
        self._client = httpx2.AsyncClient(
            headers={"User-Agent": "llamadeck"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=httpx2.Timeout(self.limits.connect_s, read=self.limits.first_s),
            # uvicorn closes a connection after 5 idle seconds; a request that comes just then is lost.
            limits=httpx2.Limits(max_connections=None, keepalive_expiry=2.0),
            follow_redirects=False,
            # A proxy cannot reach what only this machine sees.
            trust_env=not (address.startswith("http:") and is_private_way(address)),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of an answer that comes whole. Raises EngineError."""
        try:
            async with asyncio.timeout(self.limits.whole_s):
                async with self._open(path, body) as response:
                    return self._parse(await self._read(response))
        except TimeoutError:
            raise EngineError("remote_silent", server=self.name, seconds=f"{self.limits.whole_s:g}") from None

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """The JSON of each event of a streamed answer, up to its end. Raises EngineError."""
        async with self._open(path, body) as response:
            kind = response.headers.get("Content-Type", "")
            if not kind.startswith("text/event-stream"):
                raise EngineError("remote_garbled", server=self.name)
            async for data in self._events(response):
                if data == b"[DONE]":
                    return
                yield self._parse(data)

    @asynccontextmanager
    async def _open(self, path: str, body: dict[str, Any] | None) -> AsyncIterator[httpx2.Response]:
        method = "GET" if body is None else "POST"
        try:
            async with self._client.stream(method, self.address + path, json=body) as response:
                await self._check(response, path)
                yield response
        except httpx2.ConnectTimeout:
            raise EngineError("remote_unreachable", server=self.name, why=f"{self.limits.connect_s:g} s") from None
        except httpx2.TimeoutException:
            raise EngineError("remote_silent", server=self.name, seconds=f"{self.limits.first_s:g}") from None
        except (httpx2.ConnectError, httpx2.ProxyError, httpx2.UnsupportedProtocol) as error:
            raise EngineError("remote_unreachable", server=self.name, why=_why(error)) from None
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise EngineError("remote_broken", server=self.name, why=_why(error)) from None
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise EngineError("remote_unreachable", server=self.name, why=_why(error)) from None

    async def _check(self, response: httpx2.Response, path: str) -> None:
        """Raise the error that the status means, with the server's own words where it has some."""
        status = response.status_code
        if status == 200:
            return
        if response.is_redirect:
            raise EngineError("remote_redirect", server=self.name, place=self._place(response))
        if status in (401, 403):
            raise EngineError("remote_key", server=self.name)
        found: Any = None
        try:
            async with asyncio.timeout(self.limits.whole_s):
                found = load_json(await self._read(response))
        except (ValueError, RecursionError, TimeoutError, EngineError, httpx2.TransportError):
            pass  # The status explains it then.
        is_ours = isinstance(found, dict) and isinstance(found.get("error"), dict)
        if status in (404, 405, 501) and not is_ours:
            raise EngineError("remote_no_route", server=self.name, path=path)
        if status == 429:
            raise EngineError("remote_busy", server=self.name)
        key = "remote_refused" if 400 <= status < 500 else "remote_fault"
        raise EngineError(key, server=self.name, status=status, why=message_of(found) or response.reason_phrase or "-")

    def _place(self, response: httpx2.Response) -> str:
        """Where a redirect leads, as a sentence names it."""
        told = response.headers.get("Location", "")
        try:
            return host_name(urllib.parse.urljoin(self.address, told))
        except ValueError:  # Brackets that hold no address.
            return printable(told[:MAX_WHY_CHARS])

    async def _read(self, response: httpx2.Response) -> bytes:
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > self.limits.whole_bytes:
                raise EngineError("remote_too_much", server=self.name)
        return bytes(body)

    async def _events(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        """The data of each server-sent event; its comments, names and ids are skipped."""
        data: list[bytes] = []
        async for line in self._lines(response):
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
                if sum(map(len, data)) > self.limits.line_bytes:
                    raise EngineError("remote_too_much", server=self.name)
            elif not line and data:
                yield b"\n".join(data)
                data = []
        if data:
            yield b"\n".join(data)

    async def _lines(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        chunks = response.aiter_bytes()
        held, wait_s = b"", self.limits.first_s
        while True:
            try:
                async with asyncio.timeout(wait_s):
                    chunk = await anext(chunks, None)
            except TimeoutError:
                raise EngineError("remote_silent", server=self.name, seconds=f"{wait_s:g}") from None
            if chunk is None:
                break
            held, wait_s = held + chunk, self.limits.stall_s
            *lines, held = held.split(b"\n")
            for line in lines:
                yield line.removesuffix(b"\r")
            if len(held) > self.limits.line_bytes:
                raise EngineError("remote_too_much", server=self.name)
        yield held

    def _parse(self, data: bytes) -> Any:
        try:
            return load_json(data)
        except (ValueError, RecursionError):
            raise EngineError("remote_garbled", server=self.name) from None


def message_of(found: Any) -> str:
    """The words of an error in OpenAI's form or FastAPI's; empty where there are none."""
    for name in ("error", "message", "detail"):
        inner = found.get(name) if isinstance(found, dict) else None
        if isinstance(inner, str):
            return printable(inner.strip()[:MAX_WHY_CHARS])
        if isinstance(inner, dict):
            return message_of(inner)
    return ""


def _why(error: BaseException) -> str:
    """The readable cause of an error that the HTTP client wrapped in others."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    number = getattr(error, "errno", None)
    words = os.strerror(number) if isinstance(number, int) and number in errno.errorcode else str(error)
    return printable((words or type(error).__name__)[:MAX_WHY_CHARS])
