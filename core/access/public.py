"""The configured addresses: where people reach the dashboard, and whose pages may use the API."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from core.access.origins import parse_origin
from core.common.errors import InputError

PUBLIC_URLS, CORS_ORIGINS = "LLAMADECK_PUBLIC_URLS", "LLAMADECK_CORS_ORIGINS"
ANY_ORIGIN, NO_ORIGIN = "*", "null"


def public_urls(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The addresses at which people open the dashboard, none where that is open. Raises InputError."""
    return check_public_urls(environment.get(PUBLIC_URLS, "").replace(",", " ").split())


def cors_origins(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The origins whose pages may use the API, as browsers write them. Raises InputError."""
    return check_cors_origins(environment.get(CORS_ORIGINS, "").replace(",", " ").split())


def check_public_urls(urls: Sequence[str]) -> tuple[str, ...]:
    for url in urls:
        if parse_origin(url) is None or "?" in url or "#" in url:
            raise InputError("public_url", url=url)
    return tuple(urls)


def check_cors_origins(texts: Sequence[str]) -> tuple[str, ...]:
    """ "*" is every page there is; "null" is what a page says of itself that was opened from a file."""
    origins = []
    for text in texts:
        origin = parse_origin(text)
        if origin is None and text not in (ANY_ORIGIN, NO_ORIGIN):
            raise InputError("cors_origin", origin=text)
        origins.append(str(origin) if origin else text)
    return tuple(origins)
