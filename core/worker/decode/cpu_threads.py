"""How many threads compute on a CPU: one core stays free for the pages, but while nothing else has run lately.

Threads that wait for one another all stop when one of them is displaced, and small matrices make them wait often: two
threads that a busy page displaces all the time wrote 2 tokens a second. A page that wakes costs one token a wait, until
the next look. Knows no model.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

# "cpu  user nice system idle iowait irq softirq steal ...": times of all cores together, in ticks.
STAT = Path("/proc/stat")
USED = (0, 1, 2, 5, 6, 7)
# Ticks are 10 ms, so a shorter look would tell little.
LOOK_S = 0.2
# Of one core: what the system itself and a page at rest take stays below.
IDLE_SHARE = 0.2


def reserve_one_core() -> None:
    """Compute on all cores but one from now on."""
    torch.set_num_threads(max(1, num_cores() - 1))


def num_cores() -> int:
    return len(os.sched_getaffinity(0))


def used_s(stat: Path = STAT) -> float | None:
    """Seconds that all cores together have worked since the machine began; None where that is not known."""
    with suppress(OSError, ValueError, IndexError):
        ticks = stat.read_text().split("\n", 1)[0].split()[1:]
        return sum(int(ticks[place]) for place in USED) / os.sysconf("SC_CLK_TCK")
    return None


class AdaptiveThreads:
    """Watches what others than this process use of the cores, and takes them all while that is little."""

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
        """Compute on all cores from now on where nothing else wanted them lately; else on all but one."""
        now_s = self._clock()
        took_s = now_s - self._at_s
        if took_s < LOOK_S:
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
