"""What access rests on, in data/access.json (mode 0600): the password's hash, the secret that signs, what was ended.

Another process may change the file, such as `./llamadeck password`: it is read again whenever it is another one.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from core.atomic import write_atomically
from core.errors import DeckError
from core.settings import data_dir

log = logging.getLogger(__name__)
SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Kept:
    """`password` is a hash or empty, `secret` signs sessions; `ended` maps sessions that ended early to their expiry
    in seconds since 1970."""

    password: str = field(default="", repr=False)
    secret: str = field(default="", repr=False)
    ended: Mapping[str, float] = field(default_factory=dict, repr=False)


class SecretFile:
    """The file as it is now. All may be called from any thread."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or data_dir() / "access.json"
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._kept = Kept()

    def read(self) -> Kept:
        """What is kept; nothing where the file is missing or damaged, and then nobody is let in by it."""
        with self._lock:
            return self._read()

    def secret(self) -> str:
        """The signing secret, made where there is none. One that cannot be written lasts as long as this process."""
        if secret := self.read().secret:
            return secret
        made = Kept(secret=secrets.token_hex(SECRET_BYTES))
        try:
            self.change(secret=made.secret)
        except DeckError as error:
            log.warning("%s", error)
            with self._lock:
                self._kept = replace(self._kept, secret=made.secret)
        return self.read().secret

    def change(
        self, password: str | None = None, secret: str | None = None, ended: Mapping[str, float] | None = None
    ) -> None:
        """Write what is given, and let the rest be. Raises DeckError where it cannot be written; nothing changed."""
        try:
            with self._lock, self._alone():
                now = self._read()
                content = {
                    "password": now.password if password is None else password,
                    "secret": now.secret if secret is None else secret,
                    "ended": dict(now.ended if ended is None else ended),
                }
                write_atomically(self.path, json.dumps(content, indent=1) + "\n", mode=0o600)
        except OSError as error:
            raise DeckError("access_write", file=str(self.path), why=error.strerror or type(error).__name__) from error

    def _read(self) -> Kept:
        """The log names the kind of an error only: its text could quote the file."""
        try:
            state = self.path.stat()
            seen = (state.st_mtime_ns, state.st_size, state.st_ino)
            if seen != self._seen:
                content = json.loads(self.path.read_text("utf-8"))
                ended = {str(session): float(expiry) for session, expiry in content["ended"].items()}
                self._kept, self._seen = Kept(str(content["password"]), str(content["secret"]), ended), seen
        except FileNotFoundError:
            if self._seen is not None:
                self._kept, self._seen = Kept(), None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            log.error("%s is not used: %s", self.path, type(error).__name__)
            self._kept, self._seen = Kept(), None
        return self._kept

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Between reading and writing, no other process changes the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
