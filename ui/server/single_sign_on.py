"""Signing in through a provider (OIDC) as Streamlit does it.

Streamlit checks its cookie only when a page's websocket opens. The gate asks here for every request, by the same
functions, so nothing is served before somebody has signed in. secrets.toml holds:

    [auth]                       # Streamlit's own section, see its documentation of st.login
    redirect_uri = "https://chat.example.org/oauth2callback"
    cookie_secret = "…"
    client_id = "…"
    client_secret = "…"
    server_metadata_url = "https://accounts.example.org/.well-known/openid-configuration"

    [access]                     # ours: who of the provider's people may come in; without it nobody, by "*" all of them
    allow = ["ann@example.org", "*@example.net"]
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from streamlit.auth_util import (
    encode_provider_token,
    get_cookie_with_chunks,
    get_origin_from_redirect_uri,
    get_secrets_auth_section,
)
from streamlit.runtime.secrets import secrets_singleton
from streamlit.web.server.server_util import AUTH_COOKIE_NAME, get_cookie_secret
from streamlit.web.server.starlette.starlette_app_utils import decode_signed_value

from core.access.single_sign_on import ANYBODY, allow_list, is_on_list, provider_names

log = logging.getLogger(__name__)


class StreamlitSignOn:
    """SignOn (core/access/visitors.py) by Streamlit's cookie and secrets.toml."""

    def __init__(self) -> None:
        self._auth = get_secrets_auth_section().to_dict()
        self.allowed = allow_list(secrets_singleton.get("access"))

    @property
    def providers(self) -> Sequence[str]:
        return provider_names(self._auth)

    @property
    def origin(self) -> str:
        return get_origin_from_redirect_uri() or ""

    def session(self, cookies: Mapping[str, str]) -> str:
        """The hash of the cookie, which itself must not lie on a disk."""
        parts = sorted(f"{name}={value}" for name, value in cookies.items() if is_auth_cookie(name))
        return hashlib.sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()

    def person(self, cookies: Mapping[str, str]) -> str | None:
        """Issuer and subject: by OIDC the only two claims that together name one person for good."""
        claims = read_claims(cookies)
        if not claims.get("is_logged_in") or not claims.get("sub"):
            return None
        return f"{claims.get('iss') or claims.get('provider')} {claims['sub']}"

    def is_invited(self, cookies: Mapping[str, str]) -> bool:
        return self.is_on_list(checked_address(read_claims(cookies)))

    def is_on_list(self, address: str) -> bool:
        """Whether the person with this mail address may come in."""
        return is_on_list(address, self.allowed)

    def name(self, cookies: Mapping[str, str]) -> str:
        claims = read_claims(cookies)
        return str(claims.get("email") or claims.get("name") or claims.get("sub", ""))[:100]

    def start(self, provider: str) -> str:
        return f"/auth/login?provider={encode_provider_token(provider)}"


def sign_on() -> StreamlitSignOn | None:
    """Signing in through a provider, where secrets.toml sets it up."""
    if not secrets_singleton.load_if_toml_exists():
        return None
    found = StreamlitSignOn() if provider_names(get_secrets_auth_section().to_dict()) else None
    if found is not None and not found.allowed:
        log.error("secrets.toml names nobody in [access] allow: nobody may come in through the provider")
    elif found is not None and ANYBODY in found.allowed:
        log.warning("secrets.toml has %r in [access] allow: whoever the provider signs in may come in", ANYBODY)
    return found


def is_auth_cookie(name: str) -> bool:
    """Whether a cookie is Streamlit's cookie of who signed in, or a piece of a long one."""
    return name == AUTH_COOKIE_NAME or name.removeprefix(f"{AUTH_COOKIE_NAME}_").isdigit()


def checked_address(claims: Mapping[str, Any]) -> str:
    """The mail address in small letters; "" where the provider has not checked it."""
    return str(claims.get("email") or "").lower() if claims.get("email_verified") in (True, "true") else ""


def read_claims(cookies: Mapping[str, str]) -> dict[str, Any]:
    """The provider's claims about the person, from Streamlit's signed cookie; empty where it is forged or old."""
    secret = get_cookie_secret()

    def read_part(name: str) -> bytes | None:
        value = cookies.get(name)
        return decode_signed_value(secret, name, value.encode("latin-1", "replace")) if value else None

    try:
        signed = get_cookie_with_chunks(read_part, AUTH_COOKIE_NAME)
        claims = json.loads(signed) if signed else {}
    except ValueError:
        return {}
    is_ours = isinstance(claims, dict) and claims.get("origin") == get_origin_from_redirect_uri()
    return claims if is_ours else {}
