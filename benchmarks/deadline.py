"""When a benchmark begins nothing new any more, so that what it has found is told before others end it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.measuring import Unable

LIMIT_S = 540.0


@dataclass(frozen=True, slots=True)
class Deadline:
    """`at_s` by a clock that never goes back."""

    at_s: float
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, limit_s: float) -> Deadline:
        return cls(time.monotonic() + limit_s)

    @property
    def left_s(self) -> float:
        return max(0.0, self.at_s - self.clock())

    def require(self, least_s: float = 0.0) -> float:
        """The seconds that are left. Raises Unable where they are no more than `least_s`."""
        left_s = self.left_s
        if left_s <= least_s:
            raise Unable("not measured: the time limit was reached")
        return left_s


def add_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, metavar="N", help="begin nothing new after that")
