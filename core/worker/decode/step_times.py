"""How long steps take of which each ends before the next begins."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

# The share of the newest step in what is known of all.
NEWEST = 0.2
# What is assumed before both kinds were timed.
VERIFY_STEPS = 4.0


class StepTimes:
    """Of steps that decode one token, and of those that verify several. The first of each loads code, which does not
    count: what seems to take that long would never be tried again."""

    def __init__(self) -> None:
        self._decode_s = self._verify_s = 0.0
        self._has_decoded = self._has_verified = False

    @property
    def verify_steps(self) -> float:
        """In the time of how many steps of one token several are verified."""
        return self._verify_s / self._decode_s if self._verify_s and self._decode_s else VERIFY_STEPS

    @contextmanager
    def decoding(self, num_slots: int) -> Iterator[None]:
        begin_s = time.perf_counter()
        yield
        if num_slots == 1 and self._has_decoded:
            self._decode_s = _mixed(self._decode_s, time.perf_counter() - begin_s)
        self._has_decoded |= num_slots == 1

    @contextmanager
    def verifying(self) -> Iterator[None]:
        begin_s = time.perf_counter()
        yield
        if self._has_verified:
            self._verify_s = _mixed(self._verify_s, time.perf_counter() - begin_s)
        self._has_verified = True


def _mixed(known_s: float, newest_s: float) -> float:
    return known_s + NEWEST * (newest_s - known_s) if known_s else newest_s
