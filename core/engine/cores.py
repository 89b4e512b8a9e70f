"""How many threads compute on a CPU: one core stays free for the pages, but for large matrices while nothing else runs.

Threads that wait for one another all stop when one of them is displaced, and small matrices make them wait often: two
threads that a busy page displaces wrote 2 tokens a second. Knows no model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

# "0.20 0.18 0.12 1/80 11206": in the fourth place, how many threads of the machine run or could run now, of how many.
LOAD = Path("/proc/loadavg")


def leave_one_core() -> None:
    """Compute on all cores but one from now on."""
    torch.set_num_threads(max(1, num_cores() - 1))


@contextmanager
def every_idle_core() -> Iterator[None]:
    """Compute on all cores within, unless something beside this thread wants one at the moment."""
    if num_running() > 1:
        yield
        return
    num_before = torch.get_num_threads()
    torch.set_num_threads(num_cores())
    try:
        yield
    finally:
        torch.set_num_threads(num_before)


def num_cores() -> int:
    return len(os.sched_getaffinity(0))


def num_running(load: Path = LOAD) -> int:
    """How many threads of the machine run or could run, the asking one among them; many where that is not known."""
    with suppress(OSError, ValueError, IndexError):
        return int(load.read_text().split()[3].split("/")[0])
    return num_cores() + 1
