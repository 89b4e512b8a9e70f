"""Signed tokens that a browser keeps: an id, its expiry, and the origin that it was given to.

Nothing is stored of live ones.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from itsdangerous import BadSignature, Signer

from core.access.origins import Origin, parse_origin
from core.access.secret_file import SecretFile

ID_BYTES = 16
MAX_TOKEN_CHARS = 600


@dataclass(frozen=True, slots=True)
class SignedToken:
    """`origin` is None where the browser did not say it. `host_matched` is whether the request's own Host, or what a
    proxy forwarded, named that origin: then every other request to it does so too."""

    id: str
    expires_s: float
    origin: Origin | None = None
    host_matched: bool = False


class TokenSigner:
    """Of one kind, named by `salt`. `key` gives what must still be as it was, such as the password's hash."""

    def __init__(
        self,
        file: SecretFile,
        salt: str,
        life_s: float,
        key: Callable[[], str] = lambda: "",
        now: Callable[[], float] = time.time,
    ) -> None:
        self._file, self._salt, self._life_s, self._key, self._now = file, salt, life_s, key, now

    def make(self, origin: Origin | None = None, host_matched: bool = False) -> str:
        fields = [secrets.token_urlsafe(ID_BYTES), str(int(self._now() + self._life_s))]
        if origin is not None:
            fields += [base64.urlsafe_b64encode(str(origin).encode()).decode().rstrip("="), "t" if host_matched else ""]
        return self._signer().sign("~".join(fields)).decode()

    def read(self, text: str) -> SignedToken | None:
        """What `text` says, where we signed it and it has not expired."""
        if not text or len(text) > MAX_TOKEN_CHARS:
            return None
        try:
            name, expires, *place = self._unsign(text).decode("ascii").split("~")
            signed = SignedToken(name, float(expires), *_read_place(*place))
        except (BadSignature, ValueError, TypeError):
            return None
        return None if signed.expires_s <= self._now() else signed

    def _unsign(self, text: str) -> bytes:
        """What was signed. Base64 has several texts for the same bytes ("+" for "-", another last letter); only the one
        that `make` wrote is ours, so that a token cannot be altered and still be one. Raises BadSignature."""
        signer = self._signer()
        value = signer.unsign(text)
        if signer.sign(value).decode() != text:
            raise BadSignature("written otherwise than it was signed")
        return value

    def _signer(self) -> Signer:
        key = f"{self._file.secret()}\n{self._key()}"
        return Signer(key, salt=self._salt, key_derivation="hmac", digest_method=hashlib.sha256)


def _read_place(origin: str = "", told: str = "") -> tuple[Origin | None, bool]:
    text = base64.urlsafe_b64decode(origin + "=" * (-len(origin) % 4)).decode()
    return parse_origin(text), told == "t"
