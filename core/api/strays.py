"""The ASGI middleware behind the gate: a program that asks for a path which is none hears so in the API's own shape.

The dashboard answers every path with its page, which a browser's script then finds to be none; a program would take it
for what it asked. Knows which paths are pages, and no page.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.access.requests import NO_PAGES
from core.api.http_call import ClientGone, HttpCall

# The dashboard's own machinery, which has no pages and whose programs know what they ask for.
MACHINERY = (*NO_PAGES, "/auth/", "/oauth2callback")
READING = ("GET", "HEAD")


class Strays:
    """`pages` are the paths at which the dashboard's page is the answer, whoever asks."""

    def __init__(self, app: ASGIApp, pages: Collection[str]) -> None:
        self._app, self._pages = app, pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(MACHINERY) or self._is_for_page(scope):
            await self._app(scope, receive, send)
            return
        is_stray = False

        async def send_unless_stray(message: Message) -> None:
            nonlocal is_stray
            if message["type"] == "http.response.start":
                is_stray = _is_no_answer(message)
            if not is_stray:
                await send(message)

        await self._app(scope, receive, send_unless_stray)
        if is_stray:
            with suppress(ClientGone):
                await self._refuse(HttpCall(scope, receive, send, asyncio.Event()))

    async def _refuse(self, call: HttpCall) -> None:
        if call.request.scope["path"].rstrip("/") in self._pages:
            await call.refuse_method(READING)
        else:
            await call.refuse_path()

    def _is_for_page(self, scope: Scope) -> bool:
        is_browser = "text/html" in Headers(scope=scope).get("accept", "")
        return scope["method"] in READING and (is_browser or scope["path"].rstrip("/") in self._pages)


def _is_no_answer(message: Message) -> bool:
    """Whether a response is the page that stands for all paths, or a framework's bare words for an error."""
    kind = Headers(raw=message.get("headers", [])).get("content-type", "")
    return (message["status"] == 200 and kind.startswith("text/html")) or (
        message["status"] in (404, 405) and kind.startswith("text/plain")
    )
