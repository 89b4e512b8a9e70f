"""The ASGI middleware before everything: who may pass, the way to sign in and out; knows no page and no engine.

Every request and websocket is refused unless a rule lets it in, so a route that is added later is guarded too. Where a
request is let in, a header says to whom it belongs (`PERSON_HEADER`), and nobody else can send that one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Protocol
from urllib.parse import parse_qsl, quote, unquote

from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.access.access import Access, TooManyTries
from core.access.exposure import is_local, request_is_local
from core.access.headers import with_security_headers
from core.access.requests import client_of, comes_from_elsewhere, is_secure, language_of, local_path
from core.access.sessions import SESSION_S
from core.access.sign_in_page import POLICY, SIGN_IN, SIGN_OUT, SignInPage
from core.errors import DeckError
from core.text import translate

log = logging.getLogger(__name__)
COOKIE = "llamadeck_session"
# The API checks its keys itself.
API_PREFIX, API_PATHS = "/v1/", frozenset({"/v1", "/metrics", "/health", "/openapi.json"})
SIGN_ON_PATHS = frozenset({"/auth/login", "/auth/logout", "/oauth2callback"})
# Of Streamlit's own paths none is a page that a person opens.
NO_PAGES = ("/_stcore/", "/static/", "/media/", "/component/", "/app/static/")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
MAX_FORM_BYTES, FORM_S = 4096, 10.0
POLICY_VIOLATION = 1008

# A page that finds this process's mark in the header knows that the gate wrote it.
PERSON_HEADER = "x-llamadeck-person"
MARK = secrets.token_urlsafe(16)


class SignOn(Protocol):
    """Signing in through somebody who knows people (OIDC), as the dashboard's framework does it."""

    @property
    def providers(self) -> Sequence[str]: ...

    def person(self, cookies: Mapping[str, str]) -> str | None:
        """Whose signed cookie this is: a name that no two people share. None without a valid one."""

    def is_invited(self, cookies: Mapping[str, str]) -> bool:
        """Whether the person of the cookie may use this installation."""

    def name(self, cookies: Mapping[str, str]) -> str:
        """What to call the person of the cookie."""

    def start(self, provider: str) -> str:
        """The path at which signing in through `provider` begins."""


def person_in(headers: Mapping[str, str]) -> str | None:
    """Whom the gate let in with these headers, "" for whoever is local or gave the password; None without a gate."""
    mark, _, person = headers.get(PERSON_HEADER, "").partition(" ")
    return unquote(person) if secrets.compare_digest(mark.encode(), MARK.encode()) else None


class Gate:
    """Lets in: this machine where only it can reach us and nobody signs on, who gave the password, who signed on."""

    def __init__(self, app: ASGIApp, access: Access, sign_on: SignOn | None = None, logo: str = "") -> None:
        self._app, self._access, self._sign_on = app, access, sign_on
        self._page = SignInPage(logo, sign_on.providers if sign_on else ())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != PERSON_HEADER.encode()]}
        with request_is_local(is_local(scope)):
            if scope["type"] == "websocket":
                await self._websocket(scope, receive, send)
            else:
                await self._http(scope, receive, with_security_headers(send))

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if (own := await self._own(request)) is not None:
            await own(scope, receive, send)
            return
        if is_api(scope["path"]):
            # No page elsewhere has a key. Where none is asked for, on loopback, it must not get in without one.
            if asks_for_more(request) and comes_from_elsewhere(request) and "authorization" not in request.headers:
                await plain(403, "Requests from pages of other sites need a key.")(scope, receive, send)
                return
            await self._app(scope, receive, send)
            return
        if self._sign_on is not None and scope["path"] in SIGN_ON_PATHS:
            await self._app(scope, receive, send)
            return
        person = self._person(request)
        if person is None:
            await self._refusal(request)(scope, receive, send)
        elif request.method not in SAFE_METHODS and comes_from_elsewhere(request):
            await plain(403, "Requests from pages of other sites are refused.")(scope, receive, send)
        else:
            await self._app(marked(scope, person), receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A socket is asked again with each message: one that was opened before signing out ends with the next."""
        request = HTTPConnection(scope)
        person = None if comes_from_elsewhere(request) else self._person(request)
        if person is None:
            await receive()
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return

        async def receive_while_let_in() -> Message:
            message = await receive()
            if message["type"] == "websocket.receive" and self._person(request) != person:
                await send({"type": "websocket.close", "code": POLICY_VIOLATION})
                return {"type": "websocket.disconnect", "code": POLICY_VIOLATION}
            return message

        await self._app(marked(scope, person), receive_while_let_in, send)

    def _person(self, request: HTTPConnection) -> str | None:
        """To whom a request belongs; None for nobody who may come in."""
        if self._sign_on is not None:
            person = self._sign_on.person(request.cookies)
            if person and self._sign_on.is_invited(request.cookies):
                return person
        elif is_local(request.scope):
            return ""
        return "" if self._access.sessions.is_valid(request.cookies.get(COOKIE, "")) else None

    def _refusal(self, request: Request) -> Response:
        path = request.scope["path"]
        is_page = "text/html" in request.headers.get("accept", "") and not path.startswith(NO_PAGES)
        if not is_page or request.method not in SAFE_METHODS:
            return plain(401, "Sign in first.")
        query = request.scope["query_string"].decode("latin-1")
        return self._asking_page(request, quote(path, safe="/") + (f"?{query}" if query else ""))

    def _asking_page(self, request: Request, wanted: str) -> Response:
        """The page that asks who this is, and then leads to `wanted`; or the one that says why nobody is asked."""
        language = language_of(request)
        if self._sign_on is not None and self._sign_on.person(request.cookies):
            return page(403, self._page.not_invited(language, self._sign_on.name(request.cookies)))
        if self._sign_on is None and not self._access.has_password:
            return page(403, self._page.closed(language))
        return page(401, self._page.sign_in(language, local_path(wanted), self._access.has_password))

    async def _own(self, request: Request) -> Response | None:
        """The answer where the path is one of the gate's own."""
        path = request.scope["path"]
        if path == SIGN_IN and request.method == "POST":
            return await self._sign_in(request)
        if path == SIGN_IN and request.method in SAFE_METHODS:
            wanted = local_path(request.query_params.get("next", "/"))
            return redirect(wanted) if self._person(request) is not None else self._asking_page(request, wanted)
        if path == SIGN_OUT and request.method == "POST":
            return await self._sign_out(request)
        if path in (SIGN_IN, SIGN_OUT):
            return plain(405, "Use POST.", {"allow": "POST"})
        provider = path.removeprefix(f"{SIGN_IN}/")
        if self._sign_on is not None and provider in self._sign_on.providers and request.method == "GET":
            return redirect(self._sign_on.start(provider))
        return None

    async def _sign_in(self, request: Request) -> Response:
        if comes_from_elsewhere(request):
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
        try:
            is_right = await asyncio.to_thread(self._access.try_password, form.get("password", ""), client_of(request))
        except TooManyTries as error:
            seconds = math.ceil(error.wait_s)
            alert = translate(language, "access.wait", seconds=seconds)
            answer = page(429, self._page.sign_in(language, wanted, True, alert))
            answer.headers["retry-after"] = str(seconds)
            return answer
        if not is_right:
            alert = translate(language, "access.damaged" if self._access.is_damaged else "access.wrong")
            return page(401, self._page.sign_in(language, wanted, True, alert))
        log.info("%r signed in", client_of(request))
        answer = redirect(wanted)
        answer.set_cookie(COOKIE, self._access.sessions.begin(), max_age=SESSION_S, path="/", httponly=True,
                          samesite="lax", secure=is_secure(request))  # fmt: skip
        return answer

    async def _sign_out(self, request: Request) -> Response:
        """Also where nobody is signed in: then there is nothing to end, and the cookie goes."""
        if comes_from_elsewhere(request):
            return plain(403, "Sign out on this server's own page.")
        answer = redirect("/")
        try:
            await asyncio.to_thread(self._access.sessions.end, request.cookies.get(COOKIE, ""))
        except DeckError as error:
            language = language_of(request)
            answer = page(500, self._page.sign_in(language, "/", True, error.sentence(language)))
        answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="lax", secure=is_secure(request))
        return answer


def is_api(path: str) -> bool:
    """Whether a path is the API's, which asks for keys. One that goes up again (/v1/../) is none of it."""
    goes_up = {".", ".."} & set(path.replace("\\", "/").split("/"))
    return path in API_PATHS or (path.startswith(API_PREFIX) and not goes_up)


def asks_for_more(request: Request) -> bool:
    """Whether a request changes something, or wants a script to read the answer; a link, or asking first, does not."""
    return request.method not in SAFE_METHODS or ("origin" in request.headers and request.method != "OPTIONS")


def marked(scope: Scope, person: str) -> Scope:
    header = (PERSON_HEADER.encode(), f"{MARK} {quote(person)}".encode())
    return {**scope, "headers": [*scope["headers"], header]}


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
