"""Who may try a password, and when: whoever guesses must not keep the owner out.

A browser that signed in before bypasses the queue: it brings a signed token that no guesser has. So does, a few times,
an address from which the right password came. All others wait in a queue, which serves one attempt every few seconds
once there were many failures. The queue has groups: one for each address whose browser got the sign-in page, one for
programs that did not. The group served longest ago comes next.
"""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from core.access.delays import ALL_CLIENTS, MAX_CLIENTS, Delays, Failures, group_of

MAX_WAITING, MAX_WAITING_TOGETHER = 64, 16
# How long an address stays known after the right password came from it.
KNOWN_S, MAX_KNOWN = 30 * 24 * 3600.0, 1000


class TooManyAttempts(Exception):
    """The client may try again in `wait_s` seconds; its password was not checked."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(wait_s)
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class Client:
    """Who tries: an address, the id of a browser that signed in before, the id of the sign-in page that it got."""

    address: str
    device: str = ""
    page: str = ""


@dataclass(eq=False, slots=True)
class LoginAttempt:
    """One attempt. Once `is_now` is set the password may be checked. `is_over` without `is_now` means that it was
    dropped. `group` is its part of the queue, None for one that bypasses it."""

    name: str
    group: str | None
    address: str
    is_now: bool = False
    is_over: bool = False
    on_change: Callable[[], None] = field(default=lambda: None, repr=False)


class LoginQueue:
    """Any thread may call all methods. Whoever waits calls `advance` after the seconds that it returned."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        choose: Callable[[list[LoginAttempt]], LoginAttempt] = random.choice,
    ) -> None:
        self._clock, self._choose = clock, choose
        self._lock = threading.Lock()
        # The delays of clients that bypass the queue are kept apart: no number of strangers displaces them.
        self._apart, self._delays, self._all = Delays(clock), Delays(clock), Failures()
        self._known: OrderedDict[str, float] = OrderedDict()
        self._served: OrderedDict[str | None, float] = OrderedDict()
        self._waiting: list[LoginAttempt] = []
        self._current: LoginAttempt | None = None

    def begin(self, client: Client) -> LoginAttempt:
        """A new attempt. Raises TooManyAttempts where the client itself failed too often, or too many wait."""
        with self._lock:
            address = group_of(client.address)
            is_known = self._is_known(address)
            if client.device:
                return self._begin_apart(f"device {client.device}", address)
            if is_known and self._apart.may_try_freely(address):
                return self._begin_apart(address, address)
            name = f"page {client.page}" if client.page else address
            if (wait_s := self._delays.begin(name, is_shared=is_known and not client.page)) > 0:
                raise TooManyAttempts(wait_s)
            attempt = LoginAttempt(name, address if client.page else "", address)
            self._waiting.append(attempt)
            self._shorten()
            if attempt.is_over:
                raise TooManyAttempts(ALL_CLIENTS.longest_s)
            self._advance()
            return attempt

    def advance(self) -> float:
        """Serve the next attempt if it is time. Returns the seconds until the next call."""
        with self._lock:
            return self._advance()

    def give_up(self, attempt: LoginAttempt) -> None:
        """The client left. An attempt that was not checked is no failure."""
        with self._lock:
            if attempt in self._waiting:
                self._drop(attempt)
            elif self._current is attempt:
                self._current = None
                self._delays.take_back(attempt.name)
                self._all.take_back()
                self._advance()

    def finish(self, attempt: LoginAttempt, is_right: bool) -> None:
        """The password was checked."""
        with self._lock:
            if is_right:
                (self._apart if attempt.group is None else self._delays).succeeded(attempt.name)
                self._known[attempt.address] = self._clock()
                self._known.move_to_end(attempt.address)
                if len(self._known) > MAX_KNOWN:
                    self._known.popitem(last=False)
            if self._current is attempt:
                self._current = None
                if is_right:
                    self._all.take_back()
                self._advance()

    def _begin_apart(self, name: str, address: str) -> LoginAttempt:
        if (wait_s := self._apart.begin(name)) > 0:
            raise TooManyAttempts(wait_s)
        return LoginAttempt(name, None, address, is_now=True)

    def _is_known(self, address: str) -> bool:
        return address in self._known and self._clock() - self._known[address] < KNOWN_S

    def _advance(self) -> float:
        if not self._waiting or self._current is not None:
            return ALL_CLIENTS.longest_s
        now_s = self._clock()
        if (wait_s := self._all.wait_s(ALL_CLIENTS, now_s)) > 0:
            return wait_s
        served = {attempt.group: self._served.get(attempt.group, -1.0) for attempt in self._waiting}
        first_s = min(served.values())
        attempt = self._choose([attempt for attempt in self._waiting if served[attempt.group] == first_s])
        self._waiting.remove(attempt)
        self._served[attempt.group] = now_s
        self._served.move_to_end(attempt.group)
        if len(self._served) > MAX_CLIENTS:
            self._served.popitem(last=False)
        self._all.add(now_s)
        self._current, attempt.is_now = attempt, True
        attempt.on_change()
        return ALL_CLIENTS.longest_s

    def _shorten(self) -> None:
        """Drop a random attempt of the largest group where that group, or the queue, is too long."""
        parts: dict[str | None, list[LoginAttempt]] = {}
        for attempt in self._waiting:
            parts.setdefault(attempt.group, []).append(attempt)
        largest = max(parts.values(), key=len)
        if len(self._waiting) > MAX_WAITING or len(largest) > MAX_WAITING_TOGETHER:
            self._drop(self._choose(largest))

    def _drop(self, attempt: LoginAttempt) -> None:
        self._waiting.remove(attempt)
        self._delays.take_back(attempt.name)
        attempt.is_over = True
        attempt.on_change()
