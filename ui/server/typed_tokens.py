"""How many tokens a text has that is being typed: the page's own script asks, before anything is sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from core.common.errors import DeckError

log = logging.getLogger(__name__)
PATH = "/typed-tokens"
# Four bytes for each character that the script sends at most.
MAX_BODY_BYTES = 400_000
# Others wait: whoever types must not keep the answers of the API waiting.
MAX_AT_ONCE = 2
# Each that waits holds its text. One that is refused is asked again when somebody types on.
MAX_WAITING = 64
# For the log alone: whoever asked has gone.
CLIENT_GONE = 499


def typed_tokens_route(count: Callable[[str], int]) -> Route:
    """`count` may wait, and raises DeckError where no model counts: then there are 0."""
    turns = asyncio.Semaphore(MAX_AT_ONCE)
    num_asked = 0

    async def answer(request: Request) -> Response:
        nonlocal num_asked
        if num_asked >= MAX_AT_ONCE + MAX_WAITING:
            return PlainTextResponse("Too many at once.", 503)
        num_asked += 1
        try:
            return await counted(request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        finally:
            num_asked -= 1

    async def counted(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return PlainTextResponse("Too long.", 413)
        async with turns:
            try:
                tokens = await asyncio.to_thread(count, body.decode("utf-8", "replace"))
            except DeckError as error:
                log.info("what is typed was not counted: %s", error)
                tokens = 0
        return JSONResponse({"tokens": tokens})

    return Route(PATH, answer, methods=["POST"])
