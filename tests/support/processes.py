"""Whether a process is there, and whether something becomes true in time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(holds: Callable[[], object], within_s: float = 60.0) -> None:
    """For what another thread or process does with no event to wait for."""
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
