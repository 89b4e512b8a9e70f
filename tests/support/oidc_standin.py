"""A provider of identities on loopback (OIDC): discovery, a page to choose who one is, tokens, keys."""

from __future__ import annotations

import base64
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlencode

import uvicorn
from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from tests.support.dashboard import free_port

CLIENT, CLIENT_SECRET = "llamadeck", "what-only-the-two-know"
PEOPLE = {"ann": "ann@example.org", "bob": "bob@example.org", "eve": "eve@example.net"}


class OidcStandin:
    """One client, people who need no password, a key made when it starts."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._key = RSAKey.generate_key(2048, {"kid": "one", "use": "sig", "alg": "RS256"})
        self._codes: dict[str, dict[str, str]] = {}
        self.app = Starlette(
            routes=[
                Route("/.well-known/openid-configuration", self._discovery),
                Route("/authorize", self._authorize),
                Route("/token", self._token, methods=["POST"]),
                Route("/jwks", self._jwks),
            ]
        )

    def secrets_toml(self, allow: str = "") -> str:
        """What .streamlit/secrets.toml says so that a dashboard signs people in here."""
        return (
            '[auth]\nredirect_uri = "http://127.0.0.1:{port}/oauth2callback"\n'
            f'cookie_secret = "{secrets.token_hex(32)}"\nclient_id = "{CLIENT}"\nclient_secret = "{CLIENT_SECRET}"\n'
            f'server_metadata_url = "{self.url}/.well-known/openid-configuration"\n{allow}'
        )

    async def _discovery(self, _: Request) -> Response:
        return JSONResponse(
            {
                "issuer": self.url,
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "jwks_uri": f"{self.url}/jwks",
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256"],
            }
        )

    async def _authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        if (name := asked.pop("person", None)) is None:
            links = (f'<a id="{name}" href="?{urlencode(asked | {"person": name})}">{name}</a>' for name in PEOPLE)
            return HTMLResponse("<br>".join(links))
        code = secrets.token_hex(8)
        self._codes[code] = {"sub": name, "nonce": asked.get("nonce", ""), "redirect_uri": asked["redirect_uri"]}
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}", 302)

    async def _token(self, request: Request) -> Response:
        form = dict(part.split("=", 1) for part in (await request.body()).decode().split("&"))
        given = base64.b64decode(request.headers["authorization"].removeprefix("Basic ")).decode()
        assert given == f"{CLIENT}:{CLIENT_SECRET}"
        granted = self._codes.pop(form["code"])
        now = int(time.time())
        claims = {
            "iss": self.url, "aud": CLIENT, "sub": granted["sub"], "nonce": granted["nonce"], "iat": now,
            "exp": now + 600, "email": PEOPLE[granted["sub"]], "email_verified": True, "name": granted["sub"].title(),
        }  # fmt: skip
        token = jwt.encode({"alg": "RS256", "kid": "one"}, claims, self._key)
        return JSONResponse({"access_token": "x", "token_type": "Bearer", "expires_in": 600, "id_token": token})

    async def _jwks(self, _: Request) -> Response:
        return JSONResponse({"keys": [self._key.as_dict(private=False)]})


@contextmanager
def oidc_provider() -> Iterator[OidcStandin]:
    port = free_port()
    standin = OidcStandin(f"http://127.0.0.1:{port}")
    server = uvicorn.Server(uvicorn.Config(standin.app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield standin
    finally:
        server.should_exit = True
        thread.join(10)
