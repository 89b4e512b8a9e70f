"""ASGI scopes as the app behind the gate gets them: with the person, and without what a proxy changed."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from urllib.parse import quote, unquote, urlsplit

from starlette.types import Scope

# A page that finds this process's token in the header knows that the gate wrote it.
PERSON_HEADER = "x-llamadeck-person"
TRUST_TOKEN = secrets.token_urlsafe(16)
# Streamlit's token against requests of other pages has bars in it, which code-server's proxy escapes.
ESCAPED_TOKEN = re.compile(rb"(?<=_streamlit_xsrf=)2%7[Cc][^;]*")


def person_in(headers: Mapping[str, str]) -> str | None:
    """Whom the gate let in with these headers, "" for whoever is local or gave the password; None without a gate."""
    token, _, person = headers.get(PERSON_HEADER, "").partition(" ")
    return unquote(person) if secrets.compare_digest(token.encode(), TRUST_TOKEN.encode()) else None


def without_trust_token(scope: Scope) -> Scope:
    """`scope` without a person header of the client's own."""
    return {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != PERSON_HEADER.encode()]}


def with_trust_token(scope: Scope, person: str) -> Scope:
    """`scope` with a header that says that the gate let `person` in."""
    headers = [
        (name, ESCAPED_TOKEN.sub(lambda found: found[0].replace(b"%7C", b"|").replace(b"%7c", b"|"), value))
        if name == b"cookie"
        else (name, value)
        for name, value in scope["headers"]
    ]
    return {**scope, "headers": [*headers, (PERSON_HEADER.encode(), f"{TRUST_TOKEN} {quote(person)}".encode())]}


def with_host_of_origin(scope: Scope) -> Scope:
    """`scope` with the host of its Origin as Host, for a websocket."""
    origin = next((value for name, value in scope["headers"] if name == b"origin"), None)
    if origin is None:
        return scope
    headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
    return {**scope, "headers": [*headers, (b"host", origin.partition(b"://")[2])]}


def path_of(url: str) -> str:
    """The path of a public address without a slash at its end; "" for none."""
    return unquote(urlsplit(url).path).rstrip("/")


def without_base_path(scope: Scope, bases: Sequence[str]) -> Scope:
    """`scope` without the one of `bases` that its path begins with, as if a proxy had removed it."""
    for base in bases:
        if scope["path"].startswith(f"{base}/"):
            path = scope["path"].removeprefix(base)
            return {**scope, "path": path, "raw_path": quote(path).encode()}
    return scope
