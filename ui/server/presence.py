"""Signs that somebody is at a page: its script tells of keys and clicks, so that no machine is ended under them."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PATH = "/presence"


def presence_route(note: Callable[[], None]) -> Route:
    """`note` must not wait."""

    async def answer(request: Request) -> Response:
        note()
        return Response(status_code=204)

    return Route(PATH, answer, methods=["POST"])
