"""What guards this installation: the password, the sessions of those who gave it, the delays of those who did not.

Knows no request and no page.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path

from core.access.delays import Delays
from core.access.password import check_new, hash_password, is_password
from core.access.secret_file import CLOSED, SecretFile
from core.access.sessions import Sessions
from core.errors import DeckError, InputError

log = logging.getLogger(__name__)
VARIABLE = "LLAMADECK_PASSWORD"
BUSY_WAIT_S = 1.0


class TooManyTries(Exception):
    """The password is not even looked at for another `wait_s` seconds."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(wait_s)
        self.wait_s = wait_s


class Access:
    """$LLAMADECK_PASSWORD, for containers, stands above the file; it is taken out of the environment and only its hash
    stays in memory, so that no process that is started later sees it."""

    def __init__(
        self,
        file: SecretFile | None = None,
        environment: MutableMapping[str, str] = os.environ,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file or SecretFile()
        self._from_environment = ""
        self._delays = Delays(clock)
        # One guess at a time: a hash takes a core and 32 MiB.
        self._hashing = threading.Lock()
        if given := environment.pop(VARIABLE, ""):
            try:
                check_new(given)
                self._from_environment = hash_password(given)
            except InputError as error:
                log.error("%s is not used: %s", VARIABLE, error)
        self.sessions = Sessions(self._file, self._record, now)

    @property
    def has_password(self) -> bool:
        return bool(self._record())

    @property
    def is_from_environment(self) -> bool:
        """Whether the password is the environment's, so that it cannot be changed here."""
        return bool(self._from_environment)

    def try_password(self, text: str, client: str) -> bool:
        """Whether `text` is the password, for a client's address. Takes about 0.2 s; raises TooManyTries at once."""
        if not self._hashing.acquire(blocking=False):
            raise TooManyTries(BUSY_WAIT_S)
        try:
            if (wait_s := self._delays.begin(client)) > 0:
                raise TooManyTries(wait_s)
            is_right = is_password(text, self._record())
        finally:
            self._hashing.release()
        if is_right:
            self._delays.succeeded(client)
        else:
            log.warning("a wrong password came from %r", client)
        return is_right

    def set_password(self, text: str) -> None:
        """Let `text` be the password from now on; every session ends. Raises InputError, DeckError; then none did."""
        self._require_own()
        check_new(text)
        self._file.change(password=hash_password(text), ended={})

    def remove_password(self) -> None:
        self._require_own()
        self._file.change(password="", ended={})

    @property
    def is_damaged(self) -> bool:
        """Whether the file cannot be used, so that no password opens anything."""
        return self._record() == CLOSED

    def set_damaged_aside(self) -> Path | None:
        """Where a damaged file lies now, for whoever owns this machine; None where it was whole. Raises FileError."""
        return self._file.set_damaged_aside()

    def _record(self) -> str:
        return self._from_environment or self._file.read().password

    def _require_own(self) -> None:
        if self.is_from_environment:
            raise DeckError("password_from_environment", name=VARIABLE)
