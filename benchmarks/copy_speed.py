"""How fast this machine copies memory, read and write counted: a decoding step cannot read its weights faster.

`python -m benchmarks.copy_speed` prints bytes a second: of the first GPU, else of the processor with all cores.
In a process of its own, because a GPU's memory is in use as long as a process has touched it.
"""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

GPU_BYTES, CPU_BYTES = 2**31, 2**28
RUNS = 9


def main() -> None:
    import torch

    print(gpu_speed() if torch.cuda.is_available() else cpu_speed())


def gpu_speed() -> float:
    import torch

    size: int = min(GPU_BYTES, torch.cuda.mem_get_info()[0] // 4)
    source = torch.zeros(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times: list[float] = []
    for _ in range(RUNS + 1):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return 2 * size / statistics.median(times[1:])


def cpu_speed() -> float:
    """Every core copies a part of its own: beyond every cache, as weights are."""
    cores = len(os.sched_getaffinity(0))
    pairs = [(np.zeros(CPU_BYTES, np.uint8), np.ones(CPU_BYTES, np.uint8)) for _ in range(cores)]
    times = []
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(RUNS):
            begin_s = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(*pair), pairs))
            times.append(time.perf_counter() - begin_s)
    return 2 * CPU_BYTES * cores / statistics.median(times)


if __name__ == "__main__":
    main()
