from __future__ import annotations

from typing import Any

from benchmarks.memory_peak import MIB, report

FRAMES = [{"filename": "/home/me/core/worker/load.py", "line": 3, "name": "read_model"}]


def event(action: str, address: int, mib: float, frames: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"action": action, "addr": address, "size": int(mib * MIB), "frames": frames or []}


def test_a_peak_is_told_by_the_places_that_allocated_what_lived_then() -> None:
    events = [
        event("segment_map", 0, 20),
        event("alloc", 1, 8, FRAMES),
        event("alloc", 2, 4),
        event("free_completed", 1, 8),
        event("alloc", 3, 2, FRAMES),
        event("segment_map", 20, 20),
        event("segment_unmap", 20, 20),
    ]
    lines = [line.split() for line in report(events, 5 * MIB).splitlines()]
    assert lines == [
        ["held", "before:", "5.0"],
        ["most", "allocated", "beside", "it:", "12.0"],
        ["8.00", "load.py:3", "read_model"],
        ["4.00", "?"],
        ["most", "reserved", "beside", "what", "was:", "40.0"],
        ["4.00", "?"],
        ["2.00", "load.py:3", "read_model"],
    ]
