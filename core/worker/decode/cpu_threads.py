"""CPU threads: all cores while other processes used less than 0.2 of one core over the last 0.2 s, else all but one,
which the pages need.

Threads wait for one another after each matrix, so one that is displaced stops all of them. Two threads that a busy page
displaced decoded 2 tokens a second.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

# First line: "cpu  user nice system idle iowait irq softirq steal ...", the ticks of all cores together.
STAT = Path("/proc/stat")
BUSY_FIELDS = (0, 1, 2, 5, 6, 7)
# A tick is 10 ms, so a shorter interval would measure little.
INTERVAL_S = 0.2
# Of one core. The system itself and a page at rest use less.
IDLE_SHARE = 0.2


def reserve_one_core() -> None:
    """Let torch compute on all cores but one from now on."""
    torch.set_num_threads(max(1, num_cores() - 1))


def num_cores() -> int:
    return len(os.sched_getaffinity(0))


def used_s(stat: Path = STAT) -> float | None:
    """Seconds that all cores together were busy since the machine booted; None where /proc/stat does not say."""
    with suppress(OSError, ValueError, IndexError):
        ticks = stat.read_text().split("\n", 1)[0].split()[1:]
        return sum(int(ticks[place]) for place in BUSY_FIELDS) / os.sysconf("SC_CLK_TCK")
    return None


class AdaptiveThreads:
    """Sets torch's threads by how busy other processes keep the cores."""

    def __init__(
        self,
        used_s: Callable[[], float | None] = used_s,
        own_s: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._used_s, self._own_s, self._clock = used_s, own_s, clock
        self._at_s = clock()
        self._others_s = self._now_s()

    def adapt(self) -> None:
        """Measure again if INTERVAL_S has passed, and set torch's threads; called between two steps."""
        now_s = self._clock()
        took_s = now_s - self._at_s
        if took_s < INTERVAL_S:
            return
        before_s, self._at_s, self._others_s = self._others_s, now_s, self._now_s()
        is_idle = before_s is not None and self._others_s is not None
        if is_idle and (self._others_s or 0.0) - (before_s or 0.0) < IDLE_SHARE * took_s:
            torch.set_num_threads(num_cores())
        else:
            reserve_one_core()

    def _now_s(self) -> float | None:
        used_s = self._used_s()
        return None if used_s is None else used_s - self._own_s()
