"""Sessions: signed tokens that expire and can be ended before.

The signing key is made of the installation's secret and the password's hash. So another password ends every session,
also one that another process set. Nothing is stored of live sessions.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from core.access.origins import Origin
from core.access.secret_file import SecretFile
from core.access.signed_tokens import SignedToken, TokenSigner

SESSION_S = 7 * 24 * 3600


class Sessions:
    """`password_now` gives what stands for the password that holds now, a hash or another text."""

    def __init__(self, file: SecretFile, password_now: Callable[[], str], now: Callable[[], float] = time.time) -> None:
        self._file, self._password_now, self._now = file, password_now, now
        self._signer = TokenSigner(file, "llamadeck session", SESSION_S, password_now, now)

    def begin(self, origin: Origin | None = None, host_matched: bool = False) -> str:
        """The token of a new session, which is worth something at `origin` alone where that is known."""
        return self._signer.make(origin, host_matched)

    def read(self, token: str) -> SignedToken | None:
        """The session of `token`, where somebody signed in with it, and is still signed in."""
        signed = self._signer.read(token) if token and self._password_now() else None
        return None if signed is None or self.has_ended(signed.id) else signed

    def is_valid(self, token: str) -> bool:
        return self.read(token) is not None

    def end(self, token: str) -> None:
        """Sign out: the token is worth nothing from now on, also where somebody copied it."""
        if (signed := self.read(token)) is not None:
            self.note_end(signed.id, signed.expires_s)

    def note_end(self, name: str, expires_s: float) -> None:
        """Remember until `expires_s` that the session called `name` has ended. Raises DeckError."""
        self._file.end_session(name, expires_s, self._now())

    def has_ended(self, name: str) -> bool:
        return name in self._file.read().ended

    def end_all(self) -> None:
        """Sign out everywhere."""
        self._file.change(secret=secrets.token_hex(32), ended={})
