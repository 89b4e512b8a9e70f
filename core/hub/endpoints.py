"""The servers that models come from, as addresses, and which of them are the same server; asks none of them."""

from __future__ import annotations

import ipaddress
import os
import urllib.parse

from core.common.errors import InputError
from core.hub.address import quote

HUGGINGFACE = "https://huggingface.co"
# The mirror that people in China use; it answers on the Hub's own routes.
MIRROR = "https://hf-mirror.com"
MODELSCOPE = "https://www.modelscope.cn"
DEFAULT_PORTS = {"http": 80, "https": 443}


def default_endpoint() -> str:
    """$HF_ENDPOINT where it is set, else huggingface.co, as it stands."""
    return os.environ.get("HF_ENDPOINT", "").strip() or HUGGINGFACE


def checked_endpoint(endpoint: str | None) -> str:
    """`endpoint` or the default one, without a slash at its end. Raises InputError for what is no web address."""
    found = (endpoint or default_endpoint()).strip().rstrip("/")
    if origin(found) is None:
        raise InputError("hub_endpoint", endpoint=quote(found))
    return found


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
    return quote(urllib.parse.urlsplit(endpoint).netloc.rpartition("@")[2]) if origin(endpoint) else quote(endpoint)


def is_private_way(endpoint: str) -> bool:
    """Whether nobody between here and there can read what is sent: TLS, or this machine itself."""
    parts = urllib.parse.urlsplit(endpoint.strip())
    return parts.scheme == "https" or _is_loopback(parts.hostname or "")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
