"""The ASGI middleware before everything: who may pass, the way to sign in and out; knows no page and no engine.

Every request and websocket is refused unless a rule lets it in, so a route that is added later is guarded too. Where a
request is let in, a header says to whom it belongs (`PERSON_HEADER`), and nobody else can send that one.

The right password is taken from whatever origin: behind many proxies nobody here can tell which one is ours. The
session remembers the origin that it was given to, and every later request and websocket must come from that one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from urllib.parse import parse_qsl, quote

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from core.access.access import DEVICE_S, Access
from core.access.api_paths import is_api
from core.access.exposure import is_local, request_is_local
from core.access.headers import with_header, with_relative_location, with_security_headers
from core.access.origins import parse_origin
from core.access.requests import (
    FOREIGN_SITES,
    SAFE_METHODS,
    client_of,
    cookies_named,
    from_here,
    is_link,
    is_page,
    is_secure,
    language_of,
    local_path,
    prefix_told,
    root_of_page,
    was_sent_to,
)
from core.access.scopes import below_base, marked, path_of, unmarked, with_host_of_origin
from core.access.sessions import SESSION_S
from core.access.sign_in_page import POLICY, SIGN_IN, SIGN_OUT, SignInPage
from core.access.slash import uncompressed, with_slash
from core.access.turns import Client, TooManyTries
from core.access.visitors import (
    COOKIE,
    DEVICE_COOKIE,
    SECURE_PREFIX,
    SignOn,
    Visitor,
    Visitors,
    cookie_name,
    is_elsewhere_by_its_address,
    is_session_cookie,
)
from core.access.watch import POLICY_VIOLATION, Watch
from core.common.errors import DeckError
from core.common.i18n import translate

log = logging.getLogger(__name__)
SIGN_ON_OUT = "/auth/logout"
# Longer than Streamlit's cookie is good for.
SIGN_ON_S = 32 * 24 * 3600
SIGN_ON_PATHS = frozenset({"/auth/login", SIGN_ON_OUT, "/oauth2callback"})
MAX_FORM_BYTES, FORM_S = 4096, 10.0
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
        self._page = SignInPage(logo, sign_on.providers if sign_on else ())
        self._visitors = Visitors(access, sign_on, public_urls)
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
        scope = unmarked(scope)
        if scope["type"] == "http" and scope["path"] in self._bases:
            await redirect(quote(scope["path"].rpartition("/")[2]) + "/")(scope, receive, send)
            return
        scope = below_base(scope, self._bases)
        with request_is_local(is_local(scope)):
            if scope["type"] == "websocket":
                await self._websocket(scope, receive, send)
            else:
                send = with_relative_location(with_security_headers(send), from_here(HTTPConnection(scope), "/"))
                await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if (own := await self._own(request)) is not None:
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
        is_elsewhere = asks_for_more(request) and self._visitors.is_elsewhere(request, None)
        if is_elsewhere and "authorization" not in request.headers and not self._may_call(request):
            answer = plain(403, "Requests from pages of other sites need a key.")
            await answer(request.scope, request.receive, send)
            return
        with request_is_local(is_local(request.scope) and not is_elsewhere):
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
        if visitor is None or is_elsewhere_by_its_address(request, visitor):
            await self._refusal(request)(request.scope, request.receive, send)
        elif self._visitors.is_elsewhere(request, visitor.origin) and not is_link(request):
            self._warn(request)
            await plain(403, "Requests from pages of other sites are refused.")(request.scope, request.receive, send)
        else:
            watch = Watch(lambda: self._visitors.is_still(request, visitor))
            send = watch.sending(self._with_device(request, visitor, send))
            scope = marked(request.scope, visitor.person)
            if scope["path"] == "/" and is_page(request) and (prefix := prefix_told(request)):
                scope, send = uncompressed(scope), with_slash(send, prefix)
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
        if visitor is None or self._visitors.is_elsewhere(request, visitor.origin):
            if visitor is not None:
                self._warn(request)
            await receive()
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
        watch = Watch(lambda: self._visitors.is_still(request, visitor))
        scope = with_host_of_origin(marked(scope, visitor.person))
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
        return self._asking_page(request, quote(path, safe="/") + (f"?{query}" if query else ""))

    def _asking_page(self, request: Request, wanted: str) -> Response:
        """The page that asks who this is, and then leads to `wanted`; or the one that says why nobody is asked."""
        language = language_of(request)
        cookies = request.cookies
        if self._sign_on and self._sign_on.person(cookies) and not self._sign_on.is_invited(cookies):
            return page(403, self._page.not_invited(language, from_here(request, "/"), self._sign_on.name(cookies)))
        if self._sign_on is None and not self._access.has_password:
            return page(403, self._page.closed(language))
        return self._sign_in_page(request, 401, wanted)

    def _sign_in_page(self, request: Request, status: int, wanted: str, alert: str = "", ticket: str = "") -> Response:
        given = (ticket or self._access.pages.make()) if self._access.has_password else None
        root = root_of_page(request)
        return page(status, self._page.sign_in(language_of(request), root, local_path(wanted), given, alert))

    async def _own(self, request: Request) -> Response | None:
        """The answer where the path is one of the gate's own."""
        path = request.scope["path"]
        if path == SIGN_IN and request.method == "POST":
            return await self._sign_in(request)
        if path == SIGN_IN and request.method in SAFE_METHODS:
            wanted = local_path(request.query_params.get("next", "/"))
            visitor = self._visitors.find(request)
            is_in = visitor is not None and not is_elsewhere_by_its_address(request, visitor)
            return redirect(wanted) if is_in else self._asking_page(request, wanted)
        if path == SIGN_OUT and request.method == "POST":
            return await self._sign_out(request)
        if path in (SIGN_IN, SIGN_OUT):
            return plain(405, "Use POST.", {"allow": "POST"})
        provider = path.removeprefix(f"{SIGN_IN}/")
        if self._sign_on is not None and provider in self._sign_on.providers and request.method == "GET":
            return redirect(self._sign_on.start(provider))
        return None

    async def _sign_in(self, request: Request) -> Response:
        """Refused only where the browser says that a page elsewhere sends it; what it gives is for its origin alone."""
        # Where a browser leaves out the one, it sends the other to its own page's server.
        origin = parse_origin(request.headers.get("origin") or request.headers.get("referer", ""))
        if self._visitors.is_elsewhere(request, origin):
            return plain(403, "Sign in on this server's own page.")
        try:
            async with asyncio.timeout(FORM_S):
                form = await read_form(request)
        except TimeoutError:
            return plain(408, "The form took too long.", {"connection": "close"})
        except ClientDisconnect:
            return plain(400, "The form is not whole.")
        if form is None:
            return plain(413, "The form is too large.", {"connection": "close"})
        language, wanted = language_of(request), local_path(form.get("next", "/"))
        if not self._access.has_password:
            return self._asking_page(request, wanted)
        ticket = form.get("page", "")
        shown = self._access.pages.read(ticket)
        client = Client(client_of(request), self._visitors.device(request, origin), shown.id if shown else "")
        ticket = ticket if shown else ""
        try:
            is_right = await self._access.try_password_in_turn(form.get("password", ""), client)
        except TooManyTries as error:
            seconds = math.ceil(error.wait_s)
            alert = translate(language, "access.wait", seconds=seconds)
            answer = self._sign_in_page(request, 429, wanted, alert, ticket)
            answer.headers["retry-after"] = str(seconds)
            return answer
        if not is_right:
            alert = translate(language, "access.damaged" if self._access.is_damaged else "access.wrong")
            return self._sign_in_page(request, 401, wanted, alert, ticket)
        log.info("%r signed in", client_of(request))
        answer = redirect(wanted)
        was_told = origin is not None and was_sent_to(request, origin)
        token = self._access.sessions.begin(origin, was_told)
        set_cookie(answer, cookie_name(COOKIE, origin, is_secure(request, origin)), token, SESSION_S)
        return answer

    async def _sign_out(self, request: Request) -> Response:
        """Also where nobody is signed in: then there is nothing to end, and the cookie goes. Those of other ports are
        another LlamaDeck's, unless we know their sessions: then they end too."""
        visitor = self._visitors.find(request)
        if self._visitors.is_elsewhere(request, visitor.origin if visitor else None):
            return plain(403, "Sign out on this server's own page.")
        answer, sessions = redirect("/"), self._access.sessions
        own = parse_origin(request.headers.get("origin", "")) or (visitor.origin if visitor else None)
        ours = [(name, token) for name, token in cookies_named(request, is_session_cookie) if sessions.is_valid(token)]
        try:
            for _, token in ours:
                await asyncio.to_thread(sessions.end, token)
        except DeckError as error:
            answer = self._sign_in_page(request, 500, "/", error.sentence(language_of(request)))
        for name in {cookie_name(COOKIE, own, is_secure(request)), *(name for name, _ in ours)}:
            set_cookie(answer, name, "", 0)
        return answer


def set_cookie(answer: Response, name: str, value: str, max_age_s: int) -> None:
    """Without a path of its own: it then holds below the address that was asked for, whatever a proxy took away from
    that one. Nothing but a browser knows it."""
    secure = name.startswith(SECURE_PREFIX)
    answer.set_cookie(name, value, max_age=max_age_s, path=None, httponly=True, samesite="lax", secure=secure)


def asks_for_more(request: Request) -> bool:
    """Whether a request changes something, or wants a script to read the answer; a link, or asking first, does not."""
    return request.method not in SAFE_METHODS or ("origin" in request.headers and request.method != "OPTIONS")


async def read_form(request: Request) -> dict[str, str] | None:
    """The fields of a form; None where it is larger than a password can be."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return None
    return dict(parse_qsl(body.decode("latin-1"), keep_blank_values=True))


def page(status: int, html: str) -> Response:
    return HTMLResponse(html, status, {"content-security-policy": POLICY, "cache-control": "no-store"})


def plain(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return PlainTextResponse(f"{text}\n", status, {"cache-control": "no-store", **(headers or {})})


def redirect(path: str) -> Response:
    """See `path` with GET. It stands alone in the header: no Host is believed."""
    return RedirectResponse(path, 303, {"cache-control": "no-store"})
