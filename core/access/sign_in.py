"""Signing in and out: the page, its form, and the end of a session.

The right password is taken from every origin: behind many proxies the server cannot tell which one is its own. The
session stores the origin that it was given to. Every later request and websocket must come from that one.
"""

from __future__ import annotations

import asyncio
import logging
import math
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from core.access.access import Access
from core.access.login_queue import Client, TooManyAttempts
from core.access.origins import parse_origin
from core.access.requests import (
    SAFE_METHODS,
    client_of,
    cookies_named,
    from_here,
    is_secure,
    language_of,
    local_path,
    root_of_page,
    was_sent_to,
)
from core.access.responses import page, plain, redirect, set_cookie
from core.access.sessions import SESSION_S
from core.access.sign_in_page import SIGN_IN, SIGN_OUT, SignInPage
from core.access.visitors import COOKIE, SignOn, Visitors, cookie_name, is_at_other_address, is_session_cookie
from core.common.errors import DeckError
from core.common.i18n import translate

log = logging.getLogger(__name__)
MAX_FORM_BYTES, FORM_S = 4096, 10.0


class SignIn:
    """Answers on the paths to sign in and out."""

    def __init__(self, access: Access, sign_on: SignOn | None, visitors: Visitors, logo: str) -> None:
        self._access, self._sign_on, self._visitors = access, sign_on, visitors
        self._page = SignInPage(logo, sign_on.providers if sign_on else ())

    async def answer(self, request: Request) -> Response | None:
        """The response for the paths to sign in and out; None for all others."""
        path = request.scope["path"]
        if path == SIGN_IN and request.method == "POST":
            return await self._sign_in(request)
        if path == SIGN_IN and request.method in SAFE_METHODS:
            wanted = local_path(request.query_params.get("next", "/"))
            visitor = self._visitors.find(request)
            is_in = visitor is not None and not is_at_other_address(request, visitor)
            return redirect(wanted) if is_in else self.ask(request, wanted)
        if path == SIGN_OUT and request.method == "POST":
            return await self._sign_out(request)
        if path in (SIGN_IN, SIGN_OUT):
            return plain(405, "Use POST.", {"allow": "POST"})
        provider = path.removeprefix(f"{SIGN_IN}/")
        if self._sign_on is not None and provider in self._sign_on.providers and request.method == "GET":
            return redirect(self._sign_on.start(provider))
        return None

    def ask(self, request: Request, wanted: str) -> Response:
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

    async def _sign_in(self, request: Request) -> Response:
        """Refuses only what another site sends. The session is valid for the form's origin alone."""
        # A browser that leaves out Origin sends Referer to its own page's server.
        origin = parse_origin(request.headers.get("origin") or request.headers.get("referer", ""))
        if self._visitors.is_cross_origin(request, origin):
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
            return self.ask(request, wanted)
        ticket = form.get("page", "")
        shown = self._access.pages.read(ticket)
        client = Client(client_of(request), self._visitors.device(request, origin), shown.id if shown else "")
        ticket = ticket if shown else ""
        try:
            is_right = await self._access.try_password_queued(form.get("password", ""), client)
        except TooManyAttempts as error:
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
        host_matched = origin is not None and was_sent_to(request, origin)
        token = self._access.sessions.begin(origin, host_matched)
        set_cookie(answer, cookie_name(COOKIE, origin, is_secure(request, origin)), token, SESSION_S)
        return answer

    async def _sign_out(self, request: Request) -> Response:
        """Without a session it only deletes the cookie. Cookies of other ports belong to another LlamaDeck, unless this
        one knows their sessions: then those end too."""
        visitor = self._visitors.find(request)
        if self._visitors.is_cross_origin(request, visitor.origin if visitor else None):
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


async def read_form(request: Request) -> dict[str, str] | None:
    """The fields of a form; None for one that is too large."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return None
    return dict(parse_qsl(body.decode("latin-1"), keep_blank_values=True))
