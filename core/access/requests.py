"""What a request says of itself and how far that is believed: its language, its origin, where it wants to go next."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from core.text import LANGUAGES

MAX_NEXT_CHARS = 1000
DEFAULT_PORTS = {"http": 80, "https": 443}


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


def comes_from_elsewhere(request: HTTPConnection) -> bool:
    """Whether a page of another origin sent this request.

    The Origin that a browser adds is held against the Host that it asked for; neither can be set by a page. Programs
    send no Origin, and no page makes them send a cookie.
    """
    origin = request.headers.get("origin")
    if origin is None:
        return request.headers.get("sec-fetch-site") in ("cross-site", "same-site")
    try:
        parts = urlsplit(origin)
        place = (parts.hostname, parts.port or DEFAULT_PORTS.get(parts.scheme))
        host = urlsplit(f"//{request.headers.get('host', '')}")
        return place != (host.hostname, host.port or DEFAULT_PORTS.get(parts.scheme))
    except ValueError:
        return True


def is_secure(request: HTTPConnection) -> bool:
    """Whether the browser spoke https, to us or to a proxy that stands before us."""
    return request.scope["scheme"] in ("https", "wss") or request.headers.get("origin", "").startswith("https://")


def local_path(wanted: str) -> str:
    """`wanted` where it is a path on this server, else "/": a link must not lead from the sign-in page elsewhere."""
    is_path = wanted.startswith("/") and not wanted.startswith("//") and len(wanted) <= MAX_NEXT_CHARS
    is_plain = wanted.isascii() and wanted.isprintable() and not any(letter in wanted for letter in '\\ "<>')
    return wanted if is_path and is_plain else "/"


def client_of(request: HTTPConnection) -> str:
    """The client's address. uvicorn has put in what a proxy on this machine says in X-Forwarded-For, and no other."""
    return request.client.host if request.client else ""
