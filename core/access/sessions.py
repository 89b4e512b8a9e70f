"""Who has signed in: signed tokens that expire and can be ended before; knows no password and no request.

A token holds an id and its expiry, signed with a key made of the installation's secret and of the password that holds
now. So another password ends every session, also one set by another process, and nothing is kept for those that live.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable

from itsdangerous import BadSignature, Signer

from core.access.secret_file import SecretFile

SESSION_S = 7 * 24 * 3600
ID_BYTES = 16
MAX_TOKEN_CHARS = 256


class Sessions:
    """`password_now` gives what stands for the password that holds now, a hash or another text."""

    def __init__(self, file: SecretFile, password_now: Callable[[], str], now: Callable[[], float] = time.time) -> None:
        self._file, self._password_now, self._now = file, password_now, now

    def begin(self) -> str:
        """The token of a new session."""
        value = f"{secrets.token_urlsafe(ID_BYTES)}~{int(self._now()) + SESSION_S}"
        return self._signer().sign(value).decode()

    def is_valid(self, token: str) -> bool:
        """Whether somebody signed in with `token`, and is still signed in."""
        return self._read(token) is not None

    def end(self, token: str) -> None:
        """Sign out: the token is worth nothing from now on, also where somebody copied it."""
        if (found := self._read(token)) is not None:
            session, expires_s = found
            self._file.end_session(session, expires_s, self._now())

    def end_all(self) -> None:
        """Sign out everywhere."""
        self._file.change(secret=secrets.token_hex(32), ended={})

    def _read(self, token: str) -> tuple[str, float] | None:
        """The id and the expiry of a session that lives."""
        if not token or len(token) > MAX_TOKEN_CHARS or not self._password_now():
            return None
        try:
            session, _, expiry = self._signer().unsign(token).decode("ascii").rpartition("~")
            expires_s = float(expiry)
        except (BadSignature, ValueError):
            return None
        is_over = expires_s <= self._now() or session in self._file.read().ended
        return None if is_over else (session, expires_s)

    def _signer(self) -> Signer:
        key = f"{self._file.secret()}\n{self._password_now()}"
        return Signer(key, salt="llamadeck session", key_derivation="hmac", digest_method=hashlib.sha256)
