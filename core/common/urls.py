"""Web addresses: which server one names, how a sentence calls it, and who can read what is sent there."""

from __future__ import annotations

import ipaddress
import urllib.parse

from core.common.values import quoted_text

DEFAULT_PORTS = {"http": 80, "https": 443}


def origin(endpoint: str) -> str | None:
    """Scheme, host and port, by which two addresses are the same server; None for what is no web address."""
    try:
        parts = urllib.parse.urlsplit(endpoint.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if parts.scheme not in DEFAULT_PORTS or not host:
        return None
    return f"{parts.scheme}://{host}:{port or DEFAULT_PORTS[parts.scheme]}"


def host_name(endpoint: str) -> str:
    """The host as sentences call it, without a user and a password that somebody wrote into the address."""
    name = urllib.parse.urlsplit(endpoint).netloc.rpartition("@")[2] if origin(endpoint) else endpoint
    return quoted_text(name)


def is_private_way(endpoint: str) -> bool:
    """Whether nobody between here and there can read what is sent: TLS, or this machine itself."""
    parts = urllib.parse.urlsplit(endpoint.strip())
    return parts.scheme == "https" or _is_loopback(parts.hostname or "")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
