"""The access password: which texts may be one, and its scrypt hash."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import unicodedata

from core.common.errors import InputError

MIN_CHARS, MAX_CHARS = 8, 256
# 32 MiB and about 0.2 s a guess on a 2026 core: OWASP's scrypt setting for this amount of memory.
LOG2_N, R, P = 15, 8, 3
SALT_BYTES, HASH_BYTES = 16, 32


def check_new(text: str) -> None:
    """Raise InputError for what is too short or too long to be a password."""
    length = len(_normal(text))
    if not MIN_CHARS <= length <= MAX_CHARS:
        raise InputError("password_length", count=length, least=MIN_CHARS, most=MAX_CHARS)


def hash_password(text: str) -> str:
    """`text` as what may lie on a disk: scrypt$log2(n)$r$p$salt$hash, with a salt of its own."""
    salt = os.urandom(SALT_BYTES)
    numbers = (LOG2_N, R, P)
    parts = [base64.b64encode(part).decode() for part in (salt, _scrypt(text, salt, *numbers))]
    return "$".join(["scrypt", *map(str, numbers), *parts])


def is_password(text: str, record: str) -> bool:
    """Whether `record` is the hash of `text`; False for a record that is none. Takes the time of one hash."""
    try:
        kind, log2_n, r, p, salt, wanted = record.split("$")
        if kind != "scrypt" or len(text) > MAX_CHARS:
            return False
        found = _scrypt(text, base64.b64decode(salt), int(log2_n), int(r), int(p))
        return hmac.compare_digest(found, base64.b64decode(wanted))
    except ValueError:
        return False


def _scrypt(text: str, salt: bytes, log2_n: int, r: int, p: int) -> bytes:
    memory_bytes = 128 * r * (2**log2_n + p + 2)
    # scrypt fills a short text up with zeros, so that one with a zero at its end would be the same: it gets 32 bytes.
    digest = hashlib.sha256(_normal(text).encode("utf-8", "surrogatepass")).digest()
    return hashlib.scrypt(digest, salt=salt, n=2**log2_n, r=r, p=p, maxmem=2 * memory_bytes, dklen=HASH_BYTES)


def _normal(text: str) -> str:
    """Two keyboards may write one letter in two ways."""
    return unicodedata.normalize("NFC", text)
