"""The ASGI middleware before everything: who may pass.

Every request and websocket is refused unless a rule lets it in, so a route that is added later is guarded too. Where a
request is let in, a header says to whom it belongs (`PERSON_HEADER`), and nobody else can send that one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Sequence
from urllib.parse import quote

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from core.access.access import DEVICE_S, Access
from core.access.api_paths import is_api
from core.access.exposure import is_local, request_is_local
from core.access.headers import with_header, with_relative_location, with_security_headers
from core.access.requests import (
    FOREIGN_SITES,
    KEY_HEADER,
    SAFE_METHODS,
    forwarded_prefix,
    from_here,
    is_link,
    is_page,
    is_secure,
)
from core.access.responses import plain, redirect, set_cookie
from core.access.scopes import path_of, with_host_of_origin, with_trust_token, without_base_path, without_trust_token
from core.access.session_watch import POLICY_VIOLATION, SessionWatch
from core.access.sign_in import SignIn
from core.access.trailing_slash import uncompressed, with_trailing_slash
from core.access.visitors import (
    DEVICE_COOKIE,
    SignOn,
    Visitor,
    Visitors,
    cookie_name,
    is_at_other_address,
)
from core.common.errors import DeckError

log = logging.getLogger(__name__)
SIGN_ON_OUT = "/auth/logout"
# Longer than Streamlit's cookie is good for.
SIGN_ON_S = 32 * 24 * 3600
SIGN_ON_PATHS = frozenset({"/auth/login", SIGN_ON_OUT, "/oauth2callback"})
WARN_S = 60.0


class Gate:
    """Lets in: who gave the password, who signed on; where there is neither, this machine if only it can reach us.

    `public_urls` are the only addresses at which others may sign in, where there are any; a path in one is taken from
    requests whose proxy left it there. `cors_origins` are those whose pages may use the API, with a key.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        sign_on: SignOn | None = None,
        logo: str = "",
        public_urls: Sequence[str] = (),
        cors_origins: Collection[str] = (),
    ) -> None:
        self._app, self._access, self._sign_on = app, access, sign_on
        self._visitors = Visitors(access, sign_on, public_urls)
        self._sign_in = SignIn(access, sign_on, self._visitors, logo)
        self._bases = sorted({base for url in public_urls if (base := path_of(url))}, key=len, reverse=True)
        self._cors_origins = frozenset(cors_origins)
        self._api: ASGIApp = app
        if cors_origins:
            self._api = CORSMiddleware(
                app, self._cors_origins, ("GET", "POST"), ("*",), expose_headers=("Retry-After",),
                allow_private_network=True,
            )  # fmt: skip
        self._warned_s = -WARN_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        scope = without_trust_token(scope)
        if scope["type"] == "http" and scope["path"] in self._bases:
            await redirect(quote(scope["path"].rpartition("/")[2]) + "/")(scope, receive, send)
            return
        scope = without_base_path(scope, self._bases)
        with request_is_local(is_local(scope)):
            if scope["type"] == "websocket":
                await self._websocket(scope, receive, send)
            else:
                send = with_relative_location(with_security_headers(send), from_here(HTTPConnection(scope), "/"))
                await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if (own := await self._sign_in.answer(request)) is not None:
            await own(scope, receive, send)
        elif is_api(scope["path"]):
            await self._call_api(request, send)
        elif self._sign_on is not None and scope["path"] in SIGN_ON_PATHS:
            await self._pass_to_sign_on(request, send)
        else:
            await self._show(request, send)

    async def _call_api(self, request: Request, send: Send) -> None:
        """A page elsewhere needs a key also where nobody else does, on loopback; the API itself sees whether it is
        right. Only of an origin that was named will a browser let a page read the answer."""
        is_cross_origin = asks_for_more(request) and self._visitors.is_cross_origin(request, None)
        has_key = any(name in request.headers for name in ("authorization", KEY_HEADER))
        if is_cross_origin and not has_key and not self._may_call(request):
            answer = plain(403, "Requests from pages of other sites need a key.")
            await answer(request.scope, request.receive, send)
            return
        with request_is_local(is_local(request.scope) and not is_cross_origin):
            await self._api(request.scope, request.receive, send)

    def _may_call(self, request: Request) -> bool:
        return "*" in self._cors_origins or request.headers.get("origin") in self._cors_origins

    async def _pass_to_sign_on(self, request: Request, send: Send) -> None:
        if request.scope["path"] == SIGN_ON_OUT:
            if request.headers.get("sec-fetch-site") in FOREIGN_SITES:
                await plain(403, "Sign out on this server's own page.")(request.scope, request.receive, send)
                return
            try:
                await self._app(request.scope, request.receive, send)
            finally:
                # After the way out: a page that notices the end first would turn back before its cookie is gone.
                await asyncio.to_thread(self._end_sign_on, request)
            return
        await self._app(request.scope, request.receive, send)

    def _end_sign_on(self, request: Request) -> None:
        """The cookie goes by the provider's way out; what was opened with it ends too, and a copy is worth nothing."""
        if self._sign_on is not None and self._sign_on.person(request.cookies):
            try:
                expires_s = time.time() + SIGN_ON_S
                self._access.sessions.note_end(self._sign_on.session(request.cookies), expires_s)
            except DeckError as error:
                log.error("%s", error)

    async def _show(self, request: Request, send: Send) -> None:
        """A page, or a part of one."""
        visitor = self._visitors.find(request)
        if visitor is None or is_at_other_address(request, visitor):
            await self._refusal(request)(request.scope, request.receive, send)
        elif self._visitors.is_cross_origin(request, visitor.origin) and not is_link(request):
            self._warn(request)
            await plain(403, "Requests from pages of other sites are refused.")(request.scope, request.receive, send)
        else:
            watch = SessionWatch(lambda: self._visitors.is_still_allowed(request, visitor))
            send = watch.sending(self._with_device(request, visitor, send))
            scope = with_trust_token(request.scope, visitor.person)
            if scope["path"] == "/" and is_page(request) and (prefix := forwarded_prefix(request)):
                scope, send = uncompressed(scope), with_trailing_slash(send, prefix)
            await self._app(scope, request.receive, send)

    def _with_device(self, request: Request, visitor: Visitor, send: Send) -> Send:
        """`send`, which with a page gives a browser that signed in by the password what makes it known next time."""
        origin = visitor.origin
        devices = self._visitors.devices(request, origin)
        if visitor.person or visitor.session is None or not is_page(request) or devices:
            return send
        given = Response()
        name = cookie_name(DEVICE_COOKIE, origin, is_secure(request, origin))
        set_cookie(given, name, self._access.devices.make(origin), DEVICE_S)
        return with_header(send, b"set-cookie", given.headers["set-cookie"].encode())

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Streamlit holds the Origin against Host, which a proxy may have changed: it gets the one that was checked."""
        request = HTTPConnection(scope)
        visitor = self._visitors.find(request)
        if visitor is None or self._visitors.is_cross_origin(request, visitor.origin):
            if visitor is not None:
                self._warn(request)
            await receive()
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
        watch = SessionWatch(lambda: self._visitors.is_still_allowed(request, visitor))
        scope = with_host_of_origin(with_trust_token(scope, visitor.person))
        await self._app(scope, watch.receiving(receive, send), watch.sending(send))

    def _warn(self, request: HTTPConnection) -> None:
        """Say at most once a minute whose requests are refused: a page that is ours would stay empty."""
        if time.monotonic() - self._warned_s > WARN_S:
            self._warned_s = time.monotonic()
            log.warning(
                "refused a page of %.300r, sent to %.300r: behind a proxy of this machine set a password",
                request.headers.get("origin", ""), request.headers.get("host", ""),
            )  # fmt: skip

    def _refusal(self, request: Request) -> Response:
        path = request.scope["path"]
        if not is_page(request) or request.method not in SAFE_METHODS:
            return plain(401, "Sign in first.")
        query = quote(request.scope["query_string"], safe="/?:@!$&'()*+,;=%~-._")
        return self._sign_in.ask(request, quote(path, safe="/") + (f"?{query}" if query else ""))


def asks_for_more(request: Request) -> bool:
    """Whether a request changes something, or wants a script to read the answer; a link, or asking first, does not."""
    return request.method not in SAFE_METHODS or ("origin" in request.headers and request.method != "OPTIONS")
