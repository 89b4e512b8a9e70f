"""Origins (scheme, host, port): the one that a page names, and the hosts that a request was sent to.

A proxy may pass the host that the browser asked for in Host, in X-Forwarded-Host and -Port, in Forwarded, or not at
all. All of them are believed: no page can set one on a request to another origin.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from core.common.urls import DEFAULT_PORTS

MAX_HOST_CHARS = 253
MAX_FORWARDED_CHARS = 1000
# One element of Forwarded (RFC 7239) is pairs with semicolons between them; a quoted value may hold a comma.
PAIR = re.compile(r'\s*([\w-]+)=(?:"((?:[^"\\]|\\.)*)"|([^;,"\s]*))\s*(;|,|$)')


@dataclass(frozen=True, slots=True)
class Origin:
    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}")


@dataclass(frozen=True, slots=True)
class RequestHost:
    """Where a request was sent to. Without a port it is the default one of either scheme: few proxies tell both."""

    host: str
    port: int | None

    def is_of(self, origin: Origin) -> bool:
        port = DEFAULT_PORTS[origin.scheme] if self.port is None else self.port
        return (self.host, port) == (origin.host, origin.port)


def parse_origin(text: str) -> Origin | None:
    """None for what names no origin, such as "null"; a path is no part of one."""
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError:
        return None
    host = normal_host(parts.hostname or "")
    if parts.scheme not in DEFAULT_PORTS or not host or parts.username is not None or port == 0:
        return None
    return Origin(parts.scheme, host, port or DEFAULT_PORTS[parts.scheme])


def parse_host(text: str) -> RequestHost | None:
    """A Host header, or what stands in its place."""
    origin = parse_origin(f"http://{text.strip()}")
    if origin is None or any(letter in text for letter in "/?#\\"):
        return None
    has_port = re.search(r":\d+$", text.strip()) is not None
    return RequestHost(origin.host, origin.port if has_port else None)


def normal_host(name: str) -> str:
    """One way to write a name: in small letters and ASCII, without the dot at its end; an address as short as it is."""
    name = name.removesuffix(".").lower()
    try:
        return ipaddress.ip_address(name).compressed
    except ValueError:
        pass
    try:
        name = name if name.isascii() else name.encode("idna").decode()
    except UnicodeError:
        return ""
    return name if len(name) <= MAX_HOST_CHARS and not re.search(r"[\s,@\\]", name) else ""


def requested_hosts(headers: Headers) -> list[RequestHost]:
    """The places that a request names as its aim: all that a proxy may have told."""
    forwarded = parse_forwarded(", ".join(headers.getlist("forwarded")))
    names = [headers.get("host", ""), first_forwarded(headers, "x-forwarded-host"), forwarded.get("host", "")]
    hosts = [host for name in names if (host := parse_host(name)) is not None]
    port = first_forwarded(headers, "x-forwarded-port")
    if port.isascii() and port.isdigit() and len(port) < 6:
        hosts += [RequestHost(host.host, int(port)) for host in hosts if host.port is None]
    return hosts


def is_forwarded_https(headers: Headers) -> bool:
    """Whether a proxy says that the browser speaks https to it."""
    forwarded = parse_forwarded(", ".join(headers.getlist("forwarded")))
    told = (
        first_forwarded(headers, "x-forwarded-proto"),
        first_forwarded(headers, "x-forwarded-scheme"),
        forwarded.get("proto", ""),
    )
    return any(scheme.lower() in ("https", "wss") for scheme in told)


def first_forwarded(headers: Headers, name: str) -> str:
    """Of a list that each proxy adds to, what the first one said: it is the one that the browser spoke to."""
    return headers.get(name, "")[:MAX_FORWARDED_CHARS].partition(",")[0].strip().strip('"')


def parse_forwarded(text: str) -> dict[str, str]:
    """The pairs of the first element of Forwarded; nothing of one that is not written as it should be."""
    pairs, end = {}, 0
    text = text[:MAX_FORWARDED_CHARS]
    while (found := PAIR.match(text, end)) is not None:
        name, quoted, plain, separator = found.groups()
        pairs[name.lower()] = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        end = found.end()
        if separator != ";":
            return pairs
    return {}


def parse_origins(texts: Iterable[str]) -> list[Origin]:
    """The origins among addresses; what is none is left out."""
    return [origin for text in texts if (origin := parse_origin(text)) is not None]
