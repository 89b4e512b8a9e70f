"""The OpenAI-compatible API as Starlette routes: who is let in, what answers where, and what goes wrong in words."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import unquote

from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from core.access.keys import Key, KeyStore
from core.api import metrics as prometheus
from core.api.answering import MAX_WAITING, Places
from core.api.call import BODY_S, CLIENT_GONE, Call, ClientGone
from core.api.completions import Completions
from core.api.errors import ApiError
from core.api.guard import Guard
from core.api.metrics import Metrics
from core.api.model import Engine
from core.api.models import Models
from core.api.openapi import describe
from core.errors import DeckError
from core.panics import panics_as_errors
from core.personas.listing import Listing

log = logging.getLogger(__name__)
Handler = Callable[[Call], Awaitable[None]]


class Endpoint:
    """One path as an ASGI app: everything that a request can end with is decided here."""

    def __init__(
        self, name: str, handlers: Mapping[str, Handler], guard: Guard | None, metrics: Metrics, body_s: float
    ) -> None:
        self._name, self._handlers, self._guard = name, handlers, guard
        self._metrics, self._body_s = metrics, body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(scope, receive, send, self._body_s)
        try:
            with panics_as_errors():
                await self._handle(call)
        except ClientGone:
            call.status = CLIENT_GONE
        except DeckError as error:
            await call.refuse(error)
        except Exception:  # A request's edge: nothing of ours is shown to a client.
            log.exception("%s failed", self._name)
            await call.refuse(ApiError("api_fault"))
        finally:
            self._metrics.count_request(self._name, call.status or CLIENT_GONE)

    async def _handle(self, call: Call) -> None:
        if (guard := self._guard) is not None:
            call.owner = await guard.check(call.request)
            call.recheck = lambda: guard.check(call.request)
        method = call.request.method
        handler = self._handlers.get("GET" if method == "HEAD" else method)
        if handler is not None:
            await handler(call)
        elif self._handlers:
            allowed = ", ".join(self._handlers)
            await call.refuse(ApiError("api_method", method=method[:20], allowed=allowed), {"allow": allowed})
        else:
            raise ApiError("api_path", path=unquote(call.request.url.path)[:200])


def make_routes(
    engine: Engine,
    characters: Listing,
    keys: KeyStore,
    needs_key: Callable[[], bool],
    is_welcome: Callable[[Key], bool] = lambda key: True,
    max_waiting: int = MAX_WAITING,
    body_s: float = BODY_S,
) -> list[BaseRoute]:
    """All routes. Where `needs_key` says so, none answers without a key, but /health that the server is alive and
    /ready whether its engine answers; a key opens nothing while its owner is not welcome.

    Beside the slots of the engine `max_waiting` answers may wait; a request's body may take `body_s` to come.
    """
    metrics, guard = Metrics(), Guard(keys, needs_key, is_welcome)
    completions = Completions(engine, characters, metrics, Places(max_waiting))
    models = Models(engine, characters)

    async def health(call: Call) -> None:
        await call.json({"status": "ok"})

    async def ready(call: Call) -> None:
        silent_s = engine.silent_s
        status = "silent" if silent_s else engine.state.phase
        await call.json({"status": status, "silent_s": round(silent_s, 1)}, 200 if status == "ready" else 503)

    async def show_metrics(call: Call) -> None:
        text = metrics.text(engine.state, engine.running_answers)
        await call.text(text, prometheus.CONTENT_TYPE)

    async def openapi(call: Call) -> None:
        await call.json(await asyncio.to_thread(describe))

    paths: dict[str, dict[str, Handler]] = {
        "/v1/models": {"GET": models.list},
        "/v1/models/{id:path}": {"GET": models.get},
        "/v1/chat/completions": {"POST": completions.chat},
        "/v1/completions": {"POST": completions.complete},
        "/v1/tokenize": {"POST": models.tokenize},
        "/v1/detokenize": {"POST": models.detokenize},
        "/metrics": {"GET": show_metrics},
        "/openapi.json": {"GET": openapi},
        # Else the dashboard's own page would answer a mistyped path.
        "/v1": {},
        "/v1/{rest:path}": {},
    }
    routes: list[BaseRoute] = [
        Route("/health", Endpoint("/health", {"GET": health}, None, metrics, body_s)),
        Route("/ready", Endpoint("/ready", {"GET": ready}, None, metrics, body_s)),
    ]
    for path, handlers in paths.items():
        routes.append(Route(path, Endpoint(path.replace(":path", ""), handlers, guard, metrics, body_s)))
    return routes
