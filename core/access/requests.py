"""What a request says of itself, and how far that is believed: its language, origin, and where it wants to go next."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

from starlette.requests import HTTPConnection

from core.access.origins import Origin, is_forwarded_https, parse_origin, requested_hosts
from core.common.i18n import LANGUAGES

MAX_NEXT_CHARS, MAX_COOKIES = 1000, 32
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
FOREIGN_SITES = frozenset({"cross-site", "same-site"})
# In which Anthropic's clients send their key.
KEY_HEADER = "x-api-key"
# Of Streamlit's own paths none is a page that a person opens.
NO_PAGES = ("/_stcore/", "/static/", "/media/", "/component/", "/app/static/")


def language_of(request: HTTPConnection) -> str:
    """The first language of the browser's list that we speak, else English."""
    wanted = []
    for part in request.headers.get("accept-language", "")[:500].split(","):
        name, _, weight = part.strip().partition(";q=")
        try:
            wanted.append((-float(weight or 1), name[:2].lower()))
        except ValueError:
            continue
    return next((name for _, name in sorted(wanted, key=lambda one: one[0]) if name in LANGUAGES), "en")


def is_cross_origin(request: HTTPConnection, at: Origin | None = None) -> bool:
    """Whether a page of another origin sent this request.

    The Origin that a browser adds is held against `at`, the origin that the session was given to, or else against the
    places that the request was sent to. A page can set none of these. Programs send no Origin, and no page makes them
    send a cookie.
    """
    text, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if site in FOREIGN_SITES:
        return True
    if text is None or (text == "null" and site == "same-origin"):
        return False
    origin = parse_origin(text)
    if origin is None:
        return True
    return origin != at if at is not None else not was_sent_to(request, origin)


def was_sent_to(request: HTTPConnection, origin: Origin) -> bool:
    """Whether a request was sent to `origin`, by what it says itself or a proxy told. That a proxy speaks http is not
    believed: it may not be the one that the browser speaks to."""
    if origin.scheme == "http" and is_forwarded_https(request.headers):
        return False
    return any(host.is_of(origin) for host in requested_hosts(request.headers))


def is_link(request: HTTPConnection) -> bool:
    """Whether a person follows a link, or types an address: pages elsewhere may lead here, and read nothing of it."""
    is_navigation = request.headers.get("sec-fetch-mode", "navigate") == "navigate"
    return request.scope["method"] in SAFE_METHODS and is_navigation and "origin" not in request.headers


def is_page(request: HTTPConnection) -> bool:
    """Whether a person waits for a page to look at."""
    return "text/html" in request.headers.get("accept", "") and not request.scope["path"].startswith(NO_PAGES)


def is_secure(request: HTTPConnection, at: Origin | None = None) -> bool:
    """Whether the browser spoke https, to us or to a proxy that stands before us; `at`: its page's origin."""
    if (origin := at or parse_origin(request.headers.get("origin", ""))) is not None:
        return origin.scheme == "https"
    return request.scope["scheme"] in ("https", "wss") or is_forwarded_https(request.headers)


def cookies_named(request: HTTPConnection, is_one: Callable[[str], object]) -> list[tuple[str, str]]:
    """The names and values of all cookies whose names are meant, the nearest path's first: of two with one name, the
    usual reader shows one, and a page of a neighbouring name can add a second."""
    pairs = (part.strip().partition("=") for text in request.headers.getlist("cookie") for part in text.split(";"))
    return [(name, value) for name, _, value in pairs if is_one(name)][:MAX_COOKIES]


def from_here(request: HTTPConnection, path: str) -> str:
    """A path on this server as a browser finds it from the address that it asked for, whatever a proxy took away."""
    raw: bytes = request.scope.get("raw_path") or quote(request.scope["path"]).encode()
    return ("../" * (raw.count(b"/") - 1) or "./") + path.lstrip("/")


def forwarded_prefix(request: HTTPConnection) -> str:
    """The path that a proxy says it took away, without a slash at its end; "" where none does, or not as it should."""
    prefix = request.headers.get("x-forwarded-prefix", "").rstrip("/")
    return prefix if prefix and local_path(prefix) == prefix else ""


def root_of_page(request: HTTPConnection) -> str:
    """Leads from a page to where we begin. At the beginning itself the browser's address may end without a slash, if a
    proxy took a whole path away."""
    prefix = forwarded_prefix(request) if request.scope["path"] == "/" else ""
    return f"{prefix}/" if prefix else from_here(request, "/")


def local_path(wanted: str) -> str:
    """`wanted` where it is a path on this server, else "/": a link must not lead from the sign-in page elsewhere."""
    is_path = wanted.startswith("/") and not wanted.startswith("//") and len(wanted) <= MAX_NEXT_CHARS
    is_plain = wanted.isascii() and wanted.isprintable() and not any(letter in wanted for letter in '\\ "<>')
    goes_up = {".", ".."} & set(wanted.partition("?")[0].partition("#")[0].lower().replace("%2e", ".").split("/"))
    return wanted if is_path and is_plain and not goes_up else "/"


def client_of(request: HTTPConnection) -> str:
    """The client's address. uvicorn has put in what a proxy on this machine says in X-Forwarded-For, and no other."""
    return request.client.host if request.client else ""
