"""How much memory a new process may take: the host's own account, and a container's limit below it."""

from __future__ import annotations

from pathlib import Path

from core.common.host_memory import available_bytes

GIB = 2**30


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def make_meminfo(tmp_path: Path, available_gib: int) -> Path:
    path = tmp_path / "meminfo"
    write(path, f"MemTotal:  67108864 kB\nMemAvailable: {available_gib * 2**20} kB\nHugePages_Total: 0\n")
    return path


def test_without_a_limit_it_is_what_the_host_says(tmp_path: Path) -> None:
    meminfo = make_meminfo(tmp_path, 20)
    assert available_bytes(meminfo, tmp_path / "nothing") == 20 * GIB
    write(tmp_path / "group/memory.max", "max\n")
    write(tmp_path / "group/memory.current", f"{3 * GIB}\n")
    write(tmp_path / "group/memory.stat", "inactive_file 0\n")
    assert available_bytes(meminfo, tmp_path / "group") == 20 * GIB


def test_a_containers_limit_counts_and_files_that_were_read_do_not(tmp_path: Path) -> None:
    meminfo = make_meminfo(tmp_path, 200)
    write(tmp_path / "group/memory.max", f"{16 * GIB}\n")
    write(tmp_path / "group/memory.current", f"{15 * GIB}\n")
    write(tmp_path / "group/memory.stat", f"anon {9 * GIB}\ninactive_file {6 * GIB}\n")
    assert available_bytes(meminfo, tmp_path / "group") == 7 * GIB


def test_the_older_kind_of_limit_is_read_too(tmp_path: Path) -> None:
    meminfo = make_meminfo(tmp_path, 200)
    write(tmp_path / "group/memory/memory.limit_in_bytes", f"{8 * GIB}\n")
    write(tmp_path / "group/memory/memory.usage_in_bytes", f"{9 * GIB}\n")
    write(tmp_path / "group/memory/memory.stat", f"total_inactive_file {GIB // 2}\n")
    assert available_bytes(meminfo, tmp_path / "group") == 0


def test_a_host_that_tells_nothing_has_nothing_to_spare(tmp_path: Path) -> None:
    write(tmp_path / "meminfo", "MemTotal: 1 kB\n")
    assert available_bytes(tmp_path / "meminfo", tmp_path / "nothing") == 0


def test_this_machine_has_some() -> None:
    assert available_bytes() > 0
