"""To whom a request belongs, by its cookies, and whether a page of another origin sent it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import HTTPConnection

from core.access.access import Access
from core.access.exposure import is_local, is_local_name
from core.access.origins import Origin, parse_origin, parse_origins
from core.access.requests import cookies_named, is_cross_origin, is_link, is_page, was_sent_to
from core.access.sessions import Sessions
from core.access.signed_tokens import SignedToken, TokenSigner
from core.common.urls import DEFAULT_PORTS

COOKIE, DEVICE_COOKIE = "llamadeck_session", "llamadeck_device"
# A page that came over http cannot replace a cookie of https: those have the prefix.
SECURE_PREFIX = "__Secure-"
is_session_cookie = re.compile(rf"(?:{SECURE_PREFIX})?{COOKIE}(?:_\d{{1,5}})?").fullmatch
is_device_cookie = re.compile(rf"(?:{SECURE_PREFIX})?{DEVICE_COOKIE}(?:_\d{{1,5}})?").fullmatch


class SignOn(Protocol):
    """Signing in through somebody who knows people (OIDC), as the dashboard's framework does it."""

    @property
    def providers(self) -> Sequence[str]: ...

    @property
    def origin(self) -> str:
        """The origin to which the provider sends people back; the only one at which they are signed in."""

    def session(self, cookies: Mapping[str, str]) -> str:
        """A name for what the cookies hold, so that it can be ended."""

    def person(self, cookies: Mapping[str, str]) -> str | None:
        """Whose signed cookie this is: a name that no two people share. None without a valid one."""

    def is_invited(self, cookies: Mapping[str, str]) -> bool:
        """Whether the person of the cookie may use this installation."""

    def name(self, cookies: Mapping[str, str]) -> str:
        """What to call the person of the cookie."""

    def start(self, provider: str) -> str:
        """The path at which signing in through `provider` begins."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who may come in: `person` as pages know them, and the session by which they are let in, if any."""

    person: str
    session: SignedToken | None = None

    @property
    def origin(self) -> Origin | None:
        return self.session.origin if self.session else None


class Visitors:
    """`public_urls` are the only addresses at which others are let in, where there are any."""

    def __init__(self, access: Access, sign_on: SignOn | None, public_urls: Sequence[str]) -> None:
        self._access, self._sign_on = access, sign_on
        # Where the provider leads people back to is one of them, whether it is named or not.
        addresses = [*public_urls, sign_on.origin] if sign_on and public_urls else public_urls
        self._public = frozenset(parse_origins(addresses))

    def find(self, request: HTTPConnection) -> Visitor | None:
        """To whom a request belongs; None for somebody who may not come in."""
        if self._sign_on is not None:
            person = self._sign_on.person(request.cookies)
            if person and self._sign_on.is_invited(request.cookies):
                name = self._sign_on.session(request.cookies)
                if not self._access.sessions.has_ended(name):
                    return Visitor(person, SignedToken(name, math.inf, parse_origin(self._sign_on.origin)))
        elif is_local(request.scope) and not self._access.has_password:
            return Visitor("")
        tokens = cookies_named(request, is_session_cookie)
        sessions = [session for _, token in tokens if (session := self._access.sessions.read(token)) is not None]
        fitting = [session for session in sessions if not self.is_cross_origin(request, session.origin)]
        # A link says nothing of its origin: of several ports of one host, the session of the one that it leads to.
        fitting.sort(key=lambda session: session.origin is None or not was_sent_to(request, session.origin))
        return next((Visitor("", session) for session in (*fitting, *sessions)), None)

    def is_still_allowed(self, request: HTTPConnection, visitor: Visitor) -> bool:
        """Whether whoever was let in would be let in now, by the same session: another port's opens nothing here."""
        now = self.find(request)
        if now is None or now.person != visitor.person:
            return False
        return now.session is None or visitor.session is None or now.session.id == visitor.session.id

    def is_cross_origin(self, request: HTTPConnection, at: Origin | None) -> bool:
        """Whether a page of another origin than ours sent a request; `at` is that of the session, where it is known."""
        origin = parse_origin(request.headers.get("origin", ""))
        if origin is None or not self._public:
            return is_cross_origin(request, at)
        is_ours = origin in self._public or (is_local_name(origin.host) and was_sent_to(request, origin))
        return not is_ours or is_cross_origin(request, at or origin)

    def device(self, request: HTTPConnection, origin: Origin | None) -> str:
        """The id of a browser that signed in before, or still is; a page elsewhere must not use up its tries."""
        return next(
            iter(self.devices(request, origin) or known(request, is_session_cookie, self._access.sessions, origin)), ""
        )

    def devices(self, request: HTTPConnection, origin: Origin | None) -> list[str]:
        """The ids that a browser at this origin was given when it signed in."""
        return known(request, is_device_cookie, self._access.devices, origin)


def cookie_name(kind: str, origin: Origin | None, secure: bool) -> str:
    """Cookies know no ports: each port has a name of its own, so that signing in at one of a host signs out at no
    other, where another LlamaDeck may be, as at the near ends of two tunnels."""
    port = "" if origin is None or origin.port == DEFAULT_PORTS[origin.scheme] else f"_{origin.port}"
    return f"{SECURE_PREFIX if secure else ''}{kind}{port}"


def known(
    request: HTTPConnection, is_one: Callable[[str], object], kind: TokenSigner | Sessions, origin: Origin | None
) -> list[str]:
    """The ids in cookies with such names that we gave to a browser at this origin."""
    tokens = [kind.read(text) for _, text in cookies_named(request, is_one)]
    return [token.id for token in tokens if token is not None and token.origin == origin]


def is_at_other_address(request: HTTPConnection, visitor: Visitor) -> bool:
    """Whether a person opens a page at another address than they signed in at, such as another port of this machine's
    name: the cookie comes along, and the page's websocket would be refused. Known only where addresses are told."""
    session = visitor.session
    if session is None or session.origin is None or not session.host_matched:
        return False
    return is_page(request) and is_link(request) and not was_sent_to(request, session.origin)
