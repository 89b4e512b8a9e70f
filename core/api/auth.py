"""Who may use the API: a key, or a program on this machine where nobody else can reach it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request

from core.access.exposure import is_local_name
from core.access.keys import Key, KeyStore
from core.access.requests import KEY_HEADER, client_of
from core.api.errors import ApiError


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request. `client` names the key, else the address; the engine gives each client its turns.

    `owner` is whose key it is, "" where none was needed.
    """

    client: str
    owner: str = ""


def key_in(request: Request) -> str:
    """The key that a request brings, as OpenAI's clients send it or as Anthropic's; "" for none."""
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    bearer = text.strip() if scheme.lower() == "bearer" else ""
    return bearer or request.headers.get(KEY_HEADER, "").strip()


class ApiAuth:
    """Lets requests in.

    `needs_key` says whether anybody but this machine can reach the server, `is_welcome` whether a key's owner may
    still come in.
    """

    def __init__(self, keys: KeyStore, needs_key: Callable[[], bool], is_welcome: Callable[[Key], bool]) -> None:
        self._keys, self._needs_key, self._is_welcome = keys, needs_key, is_welcome

    async def check(self, request: Request) -> Caller:
        """The caller. Raises ApiError where the request needs a key and brings none, or one that opens nothing."""
        # The name of another machine on loopback: a forwarded port, or a page that made its name point here.
        is_let_in = not self._needs_key() and is_local_name(request.headers.get("host", ""))
        text = key_in(request)
        if not text:
            if is_let_in:
                return Caller(f"address {client_of(request)}")
            raise ApiError("api_key_missing")
        key = self._keys.find(text)
        if key is None or not self._is_welcome(key):
            # Most programs want a key of whatever kind, so that people make one up.
            if is_let_in:
                return Caller(f"address {client_of(request)}")
            raise ApiError("api_key_wrong")
        if self._keys.is_new_day(key):
            await asyncio.to_thread(self._keys.note_use, key)
        return Caller(f"key {key.id}", "" if is_let_in else key.owner)
