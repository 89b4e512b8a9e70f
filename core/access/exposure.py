"""Who can reach this server: what it listens on, and whether a request came from this machine.

Three things make a request local, and all have to hold. The server listens on loopback only. The connection itself is
a loopback one, whatever was configured. And the request names this machine and passed no proxy: a page whose DNS name
was pointed at 127.0.0.1 (DNS rebinding) still sends its own name as Host, and a host that puts its public address in
front of our loopback port sends that one. A proxy on this machine that leaves no trace cannot be told from this
machine: so the gate asks everybody once there is a password.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

LISTENS, LOOPBACK, NETWORK = "LLAMADECK_LISTENS", "loopback", "network"
# What proxies, tunnels and clouds add to what they pass on. Two that only name a path tell nothing of where a request
# came from, and Jupyter adds them to those of its own user.
PROXY_HEADERS = re.compile(
    rb"forwarded|via|cdn-loop|true-client-ip|x-client-ip|x-cluster-client-ip|x-nginx-proxy|x-cloud-trace-context"
    rb"|x-forwarded-(?!(?:prefix|context)$).*|(?:x-real|x-original|x-envoy|x-amzn?|x-azure|x-arr|x-vercel|x-appengine"
    rb"|x-proxyuser|x-coder|cf|fly|fastly|tailscale|ngrok|cloudfront)-.*"
)

_is_request_local: ContextVar[bool] = ContextVar("is_request_local", default=True)


def is_loopback_only() -> bool:
    """Whether nothing needs to be asked: only this machine can reach the server, and the request, if there is one now,
    came from it. Ask it for each request: it is False for one that a proxy passed on to a loopback address.
    """
    return os.environ.get(LISTENS) == LOOPBACK and _is_request_local.get()


def is_network(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether the server listens on more than loopback, or nobody knows."""
    return environment.get(LISTENS) != LOOPBACK


def note_listening(host: str | None, environment: MutableMapping[str, str] = os.environ) -> None:
    """Remember what the server listens on; None and "" are every network there is."""
    environment[LISTENS] = LOOPBACK if host and is_loopback(host) else NETWORK


def is_loopback(host: str) -> bool:
    """Whether every address that `host` stands for is this machine alone."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(_is_loopback_address(str(address[0])) for *_, address in found)


def is_local(scope: MutableMapping[str, Any]) -> bool:
    """Whether an ASGI request came from this machine, by a name of this machine, through no proxy."""
    ends = [scope.get("client"), scope.get("server")]
    if is_network() or not all(end and _is_loopback_address(str(end[0])) for end in ends):
        return False
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    hosts = [value for name, value in headers if name == b"host"]
    is_direct = not any(PROXY_HEADERS.fullmatch(name) for name, _ in headers)
    return is_direct and len(hosts) == 1 and is_local_name(hosts[0].decode("latin-1"))


@contextmanager
def request_is_local(is_local: bool) -> Iterator[None]:
    """For the time of a request, let `is_loopback_only` know where it came from."""
    token = _is_request_local.set(is_local)
    try:
        yield
    finally:
        _is_request_local.reset(token)


def is_local_name(host: str) -> bool:
    """Whether a Host header names this machine: localhost, *.localhost or a loopback address, with any port."""
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    name = name.strip("[]").rstrip(".").lower()
    return name == "localhost" or name.endswith(".localhost") or _is_loopback_address(name)


def _is_loopback_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
