"""The access to this installation: its password, its sessions, and the queue of login attempts."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from core.access.environment_password import VARIABLE, take_password
from core.access.login_queue import Client, LoginAttempt, LoginQueue, TooManyAttempts
from core.access.password import check_new, hash_password, is_password
from core.access.secret_file import CLOSED, SecretFile
from core.access.sessions import Sessions
from core.access.signed_tokens import TokenSigner
from core.common.errors import DeckError, InputError

log = logging.getLogger(__name__)
# The longest that browsers keep a cookie; the longest that a sign-in page stays usable.
DEVICE_S, PAGE_S = 400 * 24 * 3600, 24 * 3600
# How long a form waits in the queue: shorter than browsers and proxies wait for a response.
PATIENCE_S = 9.0


class Access:
    """The environment's password, for containers, takes precedence over the file's. It is removed from what later
    processes inherit, and only its hash stays in memory. core/access/environment_password.py says who can still read
    it."""

    def __init__(
        self,
        file: SecretFile | None = None,
        environment: MutableMapping[str, str] = os.environ,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file or SecretFile()
        self._from_environment = ""
        self._queue, self._clock = LoginQueue(clock), clock
        # One guess at a time: a hash takes a core and 32 MiB.
        self._hashing = ThreadPoolExecutor(1, "password")
        self.variable = VARIABLE
        try:
            given = take_password(environment)
            if given.text or given.file:
                self.variable = given.variable
                check_new(given.text)
                self._from_environment = hash_password(given.text)
        except InputError as error:
            log.error("%s is not used: %s", self.variable, error)
        self.sessions = Sessions(self._file, self._record, now)
        # `devices`: tokens of browsers that signed in before. `pages`: tokens in the forms of sign-in pages.
        self.devices = TokenSigner(self._file, "llamadeck device", DEVICE_S, now=now)
        self.pages = TokenSigner(self._file, "llamadeck sign-in page", PAGE_S, now=now)

    @property
    def has_password(self) -> bool:
        return bool(self._record())

    @property
    def is_from_environment(self) -> bool:
        """Whether the password is the environment's, so that it cannot be changed here."""
        return bool(self._from_environment)

    def try_password(self, text: str, client: str) -> bool:
        """Whether `text` is the password, for a client that is signed in already. Blocks for about 0.2 s. Raises
        TooManyAttempts without waiting."""
        attempt = self._queue.begin(Client(client, device=client))
        return self._finish(attempt, client, self._hashing.submit(is_password, text, self._record()).result())

    async def try_password_queued(self, text: str, client: Client) -> bool:
        """Whether `text` is the password, after waiting in the queue. Raises TooManyAttempts."""
        attempt = self._queue.begin(client)
        try:
            await self._wait_for(attempt)
        except BaseException:
            self._queue.give_up(attempt)
            raise
        is_right = False
        try:
            hashing = self._hashing.submit(is_password, text, self._record())
            is_right = await asyncio.wrap_future(hashing)
        finally:
            self._finish(attempt, client.address, is_right)
        return is_right

    async def _wait_for(self, attempt: LoginAttempt) -> None:
        changed = asyncio.Event()
        attempt.on_change = changed.set
        deadline_s = self._clock() + PATIENCE_S
        while not attempt.is_now:
            left_s = deadline_s - self._clock()
            if attempt.is_over or left_s <= 0:
                raise TooManyAttempts(self._queue.advance())
            try:
                async with asyncio.timeout(min(left_s, self._queue.advance())):
                    await changed.wait()
            except TimeoutError:
                continue
            changed.clear()

    def _finish(self, attempt: LoginAttempt, client: str, is_right: bool) -> bool:
        self._queue.finish(attempt, is_right)
        if not is_right:
            log.warning("a wrong password came from %r", client)
        return is_right

    def set_password(self, text: str) -> None:
        """Replace the password; every session ends. Raises InputError, DeckError; then nothing changed."""
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
            raise DeckError("password_from_environment", name=self.variable)
