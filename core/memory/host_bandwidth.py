"""How fast this machine moves memory, which is what a token on a CPU waits for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache

# More than most caches hold, little enough for any machine that loads a model.
COPIED_BYTES = 128 << 20
NUM_TRIES = 3
MAX_THREADS = 16


@cache
def measured_gb_s() -> float:
    """The 10^9 bytes a second that all cores together read and write when they copy; measured once, in a moment."""
    # It takes longer to import than a verdict takes to compute.
    import numpy as np

    num_threads = max(1, min(len(os.sched_getaffinity(0)), MAX_THREADS))
    size = COPIED_BYTES // num_threads
    pairs = [(np.ones(size, np.uint8), np.ones(size, np.uint8)) for _ in range(num_threads)]
    # numpy lets other threads run while it copies.
    took_s = min(_run_together(np.copyto, pairs) for _ in range(NUM_TRIES))
    return 2 * num_threads * size / took_s / 1e9


def _run_together(work: Callable[..., object], arguments: Sequence[tuple[object, ...]]) -> float:
    """Seconds until `work` has been done with each of `arguments`, each in a thread."""
    threads = [threading.Thread(target=work, args=each, name="bandwidth") for each in arguments]
    begin_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begin_s
