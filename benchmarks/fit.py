"""How long the verdict takes for each catalogue entry, after start-up and without a network.

`python -m benchmarks.fit [--json] [--gpu NAME]` prints the median and the longest, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence

from core.gpu.known_gpus import lookup
from core.library import catalogue
from core.memory.device_memory import DeviceMemory
from core.memory.fit import check_fit


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", default="RTX 3060", help="a card by its name (default: RTX 3060)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    known = parser.parse_args(arguments)
    card = DeviceMemory.planned(lookup(known.gpu))
    times_ms = {entry.name: time_verdict(entry, card) for entry in catalogue.entries()}
    slowest = max(times_ms, key=times_ms.__getitem__)
    median_ms = statistics.median(times_ms.values())
    if known.json:
        found = {"entries": len(times_ms), "median_ms": median_ms, "max_ms": times_ms[slowest], "slowest": slowest}
        print(json.dumps(found, indent=1))
    else:
        print(f"{len(times_ms)} entries: median {median_ms:.1f} ms, longest {times_ms[slowest]:.1f} ms ({slowest})")
    return 0


def time_verdict(entry: catalogue.CatalogueEntry, card: DeviceMemory) -> float:
    """Milliseconds for one entry whose tensors nobody has asked for yet."""
    begin_s = time.perf_counter()
    check_fit(catalogue.checkpoint(catalogue.find(entry.name)), [card])
    return 1000 * (time.perf_counter() - begin_s)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
