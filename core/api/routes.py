"""The OpenAI-compatible API as Starlette routes: who is let in, what answers where, and what goes wrong in words."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from core.access.api_paths import OTHERS_PATHS, OTHERS_PREFIXES
from core.access.keys import Key, KeyStore
from core.api import metrics as prometheus
from core.api.auth import ApiAuth
from core.api.completions import Completions
from core.api.dialects.anthropic import ANTHROPIC
from core.api.dialects.dialect import OPENAI, OPENAI_TEXT, Dialect
from core.api.dialects.ollama import OLLAMA
from core.api.dialects.responses import RESPONSES
from core.api.errors import ApiError
from core.api.generation import MAX_WAITING, AdmissionLimit
from core.api.http_call import CLIENT_GONE, ClientGone, HttpCall
from core.api.intake import BODY_S, Intake
from core.api.just_in_time import JustInTime
from core.api.messages import Messages
from core.api.metrics import Metrics
from core.api.models import Models
from core.api.ollama_routes import Ollama
from core.api.openapi import describe
from core.common.errors import DeckError
from core.common.panics import panics_as_errors
from core.engine.interface import Engine
from core.personas.listing import Listing
from core.standby.loader import ModelLoader

log = logging.getLogger(__name__)
Handler = Callable[[HttpCall], Coroutine[Any, Any, None]]


class Endpoint:
    """One path as an ASGI app: everything that a request can end with is decided here."""

    def __init__(
        self,
        name: str,
        handlers: Mapping[str, Handler],
        auth: ApiAuth | None,
        metrics: Metrics,
        ending: asyncio.Event,
        dialect: Dialect = OPENAI,
    ) -> None:
        self._name, self._handlers, self._auth = name, handlers, auth
        self._metrics, self._ending, self._dialect = metrics, ending, dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = HttpCall(scope, receive, send, self._ending, dialect=self._dialect)
        try:
            await self._answer(call)
        except ClientGone:
            call.status = CLIENT_GONE
        finally:
            self._metrics.count_request(self._name, call.status or CLIENT_GONE)

    async def _answer(self, call: HttpCall) -> None:
        try:
            with panics_as_errors():
                await self._handle(call)
        except ClientGone:
            raise
        except DeckError as error:
            await call.refuse(error)
        except Exception:  # A request's edge: nothing of ours is shown to a client.
            log.exception("%s failed", self._name)
            await call.refuse(ApiError("api_fault"))

    async def _handle(self, call: HttpCall) -> None:
        if (auth := self._auth) is not None:
            caller = await auth.check(call.request)
            call.client, call.owner = caller.client, caller.owner
            call.recheck = lambda: auth.check(call.request)
        method = call.request.method
        handler = self._handlers.get("GET" if method == "HEAD" else method)
        if handler is not None and self._auth is not None:
            await call.unless_ending(handler(call))
        elif handler is not None:
            await handler(call)
        elif self._handlers:
            await call.refuse_method(self._handlers)
        else:
            await call.refuse_path()


def make_routes(
    engine: Engine,
    characters: Listing,
    keys: KeyStore,
    needs_key: Callable[[], bool],
    is_welcome: Callable[[Key], bool] = lambda key: True,
    max_waiting: int = MAX_WAITING,
    body_s: float = BODY_S,
    ending: asyncio.Event | None = None,
    loader: ModelLoader | None = None,
    unload_s: Callable[[], float | None] = lambda: None,
) -> list[BaseRoute]:
    """All routes. Where `needs_key` says so, none answers without a key, but /health that the server is alive and
    /ready whether its engine answers; a key opens nothing while its owner is not welcome.

    Beside the slots of the engine `max_waiting` answers of each client may wait; a request's body may take `body_s` to
    come. Once `ending` is set all that is being answered ends with an error that says so. `loader` brings the model
    that a request names; None: only what is loaded answers. `unload_s` says in how many seconds an idle model is
    unloaded.
    """
    metrics, auth, intake = Metrics(), ApiAuth(keys, needs_key, is_welcome), Intake(body_s)
    ending = ending or asyncio.Event()
    just_in_time = JustInTime(engine, loader, intake, characters)
    completions = Completions(engine, characters, metrics, intake, AdmissionLimit(max_waiting), just_in_time)
    models = Models(engine, characters, intake, just_in_time, loader)

    messages = Messages(completions)

    async def health(call: HttpCall) -> None:
        await call.json({"status": "ok"})

    async def ready(call: HttpCall) -> None:
        silent_s, state = engine.silent_s, engine.state
        # A model that sleeps comes with the next request, which a balancer must let through.
        is_asleep = state.asleep is not None and state.phase != "failed" and loader is not None
        status = "silent" if silent_s else "asleep" if is_asleep else state.phase
        is_ready = status in ("ready", "asleep")
        await call.json({"status": status, "silent_s": round(silent_s, 1)}, 200 if is_ready else 503)

    async def show_metrics(call: HttpCall) -> None:
        text = metrics.text(engine.state, engine.running_answers)
        await call.text(text, prometheus.CONTENT_TYPE)

    async def tell_key(call: HttpCall) -> None:
        await call.json({"object": "key", "valid": True})

    async def openapi(call: HttpCall) -> None:
        await call.json(await intake.run(describe))

    served: dict[str, dict[str, Handler]] = {
        "/models": {"GET": models.list},
        "/models/{id:path}": {"GET": models.get},
        "/chat/completions": {"POST": completions.chat},
        "/completions": {"POST": completions.complete},
        "/tokenize": {"POST": models.tokenize},
        "/detokenize": {"POST": models.detokenize},
    }
    ollama = Ollama(engine, completions, models, intake, just_in_time, loader, unload_s)
    spoken: dict[Dialect, dict[str, dict[str, Handler]]] = {
        ANTHROPIC: {"/v1/messages": {"POST": messages.create}, "/v1/messages/count_tokens": {"POST": messages.count}},
        RESPONSES: {"/v1/responses": {"POST": messages.respond}},
        OLLAMA: {
            "/api/version": {"GET": ollama.version},
            "/api/tags": {"GET": ollama.tags},
            "/api/ps": {"GET": ollama.running},
            "/api/show": {"POST": ollama.show},
            "/api/chat": {"POST": ollama.chat},
            "/api/generate": {"POST": ollama.generate},
        },
    }
    paths: dict[str, tuple[str, dict[str, Handler]]] = {
        "/metrics": ("/metrics", {"GET": show_metrics}),
        "/openapi.json": ("/openapi.json", {"GET": openapi}),
        # Many clients are given an address without /v1.
        **{f"{prefix}{path}": (f"/v1{path}", handlers) for path, handlers in served.items() for prefix in ("/v1", "")},
        # Else the dashboard's own page would answer a mistyped path, and whoever looks for another server.
        **{path: ("/v1/{rest}", {}) for path in ("/v1", "/v1/{rest:path}")},
        **{path: ("other", {}) for path in sorted(OTHERS_PATHS)},
        **{f"{prefix}{{rest:path}}": ("other", {}) for prefix in OTHERS_PREFIXES},
    }
    # Whoever tries a key wants to know of this key, also where none is needed.
    strict = ApiAuth(keys, lambda: True, is_welcome)
    routes: list[BaseRoute] = [
        Route("/v1/key", Endpoint("/v1/key", {"GET": tell_key}, strict, metrics, ending)),
        Route("/health", Endpoint("/health", {"GET": health}, None, metrics, ending)),
        Route("/ready", Endpoint("/ready", {"GET": ready}, None, metrics, ending)),
    ]
    for dialect, others in spoken.items():
        for path, handlers in others.items():
            one = Endpoint(path, handlers, auth, metrics, ending, dialect)
            routes += [Route(name, one) for name in dict.fromkeys((path, path.removeprefix("/v1")))]
    for path, (name, handlers) in paths.items():
        dialect = OPENAI_TEXT if name == "/v1/completions" else OPENAI
        routes.append(Route(path, Endpoint(name.replace(":path", ""), handlers, auth, metrics, ending, dialect)))
    return routes
