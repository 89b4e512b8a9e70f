"""Login delays: how long a client waits after wrong passwords.

An attempt counts as failed from its beginning, so that parallel ones gain nothing. The right password takes that back.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

FORGET_S = 3600.0
MAX_CLIENTS = 10_000


@dataclass(frozen=True, slots=True)
class LoginDelaySteps:
    """`free` failures cost no delay, the next one `first_s`, each further one twice as much, up to `longest_s`."""

    free: int
    first_s: float
    longest_s: float

    def pause_s(self, num_failures: int) -> float:
        if num_failures < self.free:
            return 0.0
        return float(min(self.longest_s, self.first_s * 2 ** min(num_failures - self.free, 30)))


# A person mistypes a few times. A program that guesses from many addresses gets one guess in 4 s.
ONE_CLIENT = LoginDelaySteps(free=4, first_s=1.0, longest_s=900.0)
ALL_CLIENTS = LoginDelaySteps(free=50, first_s=0.25, longest_s=4.0)


@dataclass(slots=True)
class Failures:
    count: int = 0
    last_s: float = 0.0

    def wait_s(self, steps: LoginDelaySteps, now_s: float) -> float:
        if now_s - self.last_s > FORGET_S:
            self.count = 0
        return max(0.0, self.last_s + steps.pause_s(self.count) - now_s) if self.count else 0.0

    def add(self, now_s: float) -> None:
        self.count, self.last_s = self.count + 1, now_s

    def take_back(self) -> None:
        self.count = max(0, self.count - 1)


class Delays:
    """Failures by client, of the MAX_CLIENTS that failed last. For one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._clients: OrderedDict[str, Failures] = OrderedDict()

    def begin(self, client: str, is_shared: bool = False) -> float:
        """The seconds until `client` may try. 0 means now, and counts an attempt. A name that `is_shared` by many gets
        no delay: its failures are nobody's in particular."""
        now_s = self._clock()
        failures = self._clients.get(client) or Failures()
        wait_s = 0.0 if is_shared else failures.wait_s(ONE_CLIENT, now_s)
        if wait_s > 0:
            return wait_s
        failures.add(now_s)
        self._clients[client] = failures
        self._clients.move_to_end(client)
        if len(self._clients) > MAX_CLIENTS:
            self._clients.popitem(last=False)
        return 0.0

    def may_try_freely(self, client: str) -> bool:
        """Whether `client` has failed less often than a person who mistypes."""
        failures = self._clients.get(client)
        return failures is None or (
            failures.wait_s(ONE_CLIENT, self._clock()) == 0 and failures.count < ONE_CLIENT.free
        )

    def take_back(self, client: str) -> None:
        """The attempt of `client` was not checked."""
        if (failures := self._clients.get(client)) is not None:
            failures.take_back()

    def succeeded(self, client: str) -> None:
        """The attempt of `client` was right: forget its failures."""
        self._clients.pop(client, None)


def group_of(client: str) -> str:
    """Who counts as one: an IPv4 address; of IPv6 the 64 bits that one customer gets."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return client[:64]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)
