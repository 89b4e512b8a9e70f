"""The secrets of data/access.json (mode 0600): the password's hash, the signing secret, the sessions that were ended.

Another process may change the file, as `./llamadeck password` does: it is read again whenever it changed.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from core.common.errors import DeckError
from core.common.json_file import JsonFile
from core.common.paths import data_dir

log = logging.getLogger(__name__)
SECRET_BYTES = 32
# What no text is the password of.
CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class StoredSecrets:
    """`password` is a hash or empty, `secret` signs sessions; `ended` maps sessions that ended early to their expiry
    in seconds since 1970."""

    password: str = field(default="", repr=False)
    secret: str = field(default="", repr=False)
    ended: Mapping[str, float] = field(default_factory=dict, repr=False)


class SecretFile:
    """The file as it is now. All may be called from any thread."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or data_dir() / "access.json"
        self.file = JsonFile(
            self.path, _parse, asdict, StoredSecrets(), mode=0o600, fields=("password", "secret", "ended"),
            sentences={"unwritable": "access_write"},
        )  # fmt: skip
        # For where none can be written.
        self._own_secret = secrets.token_hex(SECRET_BYTES)

    def read(self) -> StoredSecrets:
        """What is stored. A file that cannot be used lets nobody in: its password is one that no text is."""
        stored = self.file.read_or_empty()
        if not stored.password and self.path.is_file() and self.file.problem() is not None:
            return StoredSecrets(password=CLOSED)
        return stored

    def secret(self) -> str:
        """The signing secret, made where there is none. One that cannot be written lasts as long as this process."""
        if secret := self.read().secret:
            return secret
        try:
            with self.file.change() as change:
                if not change.value.secret:
                    change.value = replace(change.value, secret=self._own_secret)
        except DeckError as error:
            log.warning("%s", error)
        return self.read().secret or self._own_secret

    def change(
        self, password: str | None = None, secret: str | None = None, ended: Mapping[str, float] | None = None
    ) -> None:
        """Write what is given, and let the rest be. Raises FileError where it cannot be written; nothing changed."""
        with self.file.change() as change:
            now = change.value
            change.value = replace(
                now,
                password=now.password if password is None else password,
                secret=now.secret if secret is None else secret,
                ended=now.ended if ended is None else ended,
            )

    def end_session(self, session: str, expires_s: float, now_s: float) -> None:
        """Note that `session` ended before its time, and forget those whose time has come. Raises FileError."""
        with self.file.change() as change:
            alive = {name: expiry for name, expiry in change.value.ended.items() if expiry > now_s}
            change.value = replace(change.value, ended=alive | {session: expires_s})

    def set_damaged_aside(self) -> Path | None:
        """Where a damaged file lies now, None where it was whole. Raises FileError."""
        return self.file.set_aside()


def _parse(value: Any) -> StoredSecrets:
    """Raises TypeError, KeyError, AttributeError for anything else than what is written there."""
    password, secret, ended = value["password"], value["secret"], value["ended"]
    if not isinstance(password, str) or not isinstance(secret, str) or not all(map(_is_time, ended.values())):
        raise TypeError
    return StoredSecrets(password, secret, ended)


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
