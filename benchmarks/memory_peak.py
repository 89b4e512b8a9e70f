"""Tells what a GPU's memory was taken by at its fullest moment: each place of our code that allocated, and the holes.

Replays torch's own history of its allocator (torch.cuda.memory._record_memory_history).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MIB = 2**20
MAX_EVENTS = 2_000_000


@contextmanager
def explained(file: Path) -> Iterator[None]:
    """Write into `file` what the peak inside the `with` block consists of, beside what was held before it."""
    import torch

    torch.cuda.empty_cache()
    held_before = torch.cuda.memory_allocated()
    torch.cuda.memory._record_memory_history(max_entries=MAX_EVENTS, context="alloc", stacks="python")
    try:
        yield
    finally:
        events = torch.cuda.memory._snapshot()["device_traces"][0]
        torch.cuda.memory._record_memory_history(enabled=None)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(report(events, held_before), "utf-8")


def report(events: Sequence[Mapping[str, Any]], held_before: int) -> str:
    """Two tables, MiB: what lived at the moment when most was allocated, and when most was reserved."""
    allocated, reserved = fill_levels(events)
    return "\n".join(
        [
            f"held before: {held_before / MIB:.1f}",
            f"most allocated beside it: {max(allocated) / MIB:.1f}",
            *lines(live_at(events, allocated.index(max(allocated)))),
            f"most reserved beside what was: {max(reserved) / MIB:.1f}",
            *lines(live_at(events, reserved.index(max(reserved)))),
            "",
        ]
    )


def fill_levels(events: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[int]]:
    """Bytes allocated and bytes reserved after each event, from 0 before the first."""
    sizes: dict[int, int] = {}
    allocated, reserved = [0], [0]
    for event in events:
        action, size = event["action"], event["size"]
        if action == "alloc":
            sizes[event["addr"]] = size
        change = size if action == "alloc" else -sizes.pop(event["addr"], 0) if action == "free_completed" else 0
        allocated.append(allocated[-1] + change)
        segment = (action in ("segment_alloc", "segment_map")) - (action in ("segment_free", "segment_unmap"))
        reserved.append(reserved[-1] + segment * size)
    return allocated, reserved


def live_at(events: Sequence[Mapping[str, Any]], count: int) -> Counter[str]:
    """Bytes that live after the first `count` events, by the place that allocated them."""
    live: dict[int, Mapping[str, Any]] = {}
    for event in events[:count]:
        if event["action"] == "alloc":
            live[event["addr"]] = event
        elif event["action"] == "free_completed":
            live.pop(event["addr"], None)
    found: Counter[str] = Counter()
    for event in live.values():
        found[place_of(event.get("frames", ()))] += event["size"]
    return found


def lines(parts: Counter[str]) -> list[str]:
    return [f"  {size / MIB:10.2f}  {place}" for place, size in parts.most_common(40)]


def place_of(frames: Sequence[Mapping[str, Any]]) -> str:
    """The three innermost of our own functions that allocated, else the innermost of others."""
    ours = [frame for frame in frames if "/core/" in frame["filename"] or "/benchmarks/" in frame["filename"]]
    named = [f"{Path(frame['filename']).name}:{frame['line']} {frame['name']}" for frame in (ours or frames)[:3]]
    return " < ".join(named) or "?"
