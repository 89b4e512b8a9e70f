"""How much of the host's memory is available, also inside a container with a limit."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
# cgroup v2 and v1: the files of the limit, of the use, and of the statistics, and the line there of droppable pages.
LAYOUTS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def available_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int:
    """Bytes that a new process can take without swapping: the host's, or what a container's limit leaves."""
    host_bytes = _numbers(meminfo).get("MemAvailable:", 0) * 1024
    left_bytes = [left for layout in LAYOUTS if (left := _left_of_limit(cgroup, *layout)) is not None]
    return min([host_bytes, *left_bytes])


def _left_of_limit(cgroup: Path, limit_name: str, used_name: str, stat_name: str, droppable: str) -> int | None:
    """Bytes that a container may still take; None without a limit. Droppable pages count as free."""
    with suppress(OSError, ValueError):
        limit = int((cgroup / limit_name).read_text("ascii"))
        used = int((cgroup / used_name).read_text("ascii"))
        return max(0, limit - used + _numbers(cgroup / stat_name).get(droppable, 0))
    return None


def _numbers(path: Path) -> dict[str, int]:
    """The second word of each line as a number, by the first."""
    lines = [line.split() for line in path.read_text("ascii", "replace").splitlines()]
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
