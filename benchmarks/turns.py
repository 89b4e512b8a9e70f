"""Turns on one card: jobs that share it load and compile side by side, and each measures while the others stand still.

benchmarks/gpu_tables.py makes a folder of turns and begins jobs in it; what a job measures stands in `turn()`. Without
such a folder a turn begins at once.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

# The folder: a lock that who measures holds, and a file for each job, named by its process.
VARIABLE = "LLAMADECK_TURNS"
LOCK = "lock"


def is_shared() -> bool:
    """Whether other jobs may have the card too."""
    return bool(os.environ.get(VARIABLE))


@contextmanager
def turn() -> Iterator[None]:
    """While the other jobs of the folder stand still, with all processes that they began."""
    if not is_shared():
        yield
        return
    folder = Path(os.environ[VARIABLE])
    with (folder / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        others = stop(jobs(folder), spared=os.getpid())
        try:
            yield
        finally:
            send(others, signal.SIGCONT)


@contextmanager
def between_turns(folder: Path) -> Iterator[bool]:
    """Whether nobody measures; as long as this lasts nobody begins to."""
    with (folder / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def enter(folder: Path, job: int) -> None:
    """Let turns stop the process `job`; called between turns."""
    (folder / str(job)).touch()


def leave(folder: Path, job: int) -> None:
    (folder / str(job)).unlink(missing_ok=True)


def go_on(folder: Path) -> None:
    """Let every job run: one that was killed while it measured has let none of them; called between turns."""
    send(families(jobs(folder), dict(processes())), signal.SIGCONT)


def jobs(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]


def stop(roots: Iterable[int], spared: int) -> set[int]:
    """Stop `roots`, but for the one that the process `spared` is in, and all that they began; a process that one began
    meanwhile is stopped too. Each round reads all processes once."""
    others, stopped = set(roots), set[int]()
    while True:
        parents = dict(processes())
        others -= ancestors(spared, parents)
        new = families(others, parents) - stopped
        if not new:
            return stopped
        send(new, signal.SIGSTOP)
        stopped |= new


def families(roots: Iterable[int], parents: Mapping[int, int]) -> set[int]:
    """Those of `roots` that live, and all processes below them."""
    found = {root for root in roots if root in parents}
    while more := {process for process, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def ancestors(process: int, parents: Mapping[int, int]) -> set[int]:
    """`process` and all above it."""
    found = set[int]()
    while process in parents and process not in found:
        found.add(process)
        process = parents[process]
    return found


def processes() -> Iterator[tuple[int, int]]:
    """Every process with its parent."""
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            with suppress(OSError):
                # The name of the command before may have brackets and blanks in it.
                yield int(path.name), int((path / "stat").read_text("ascii", "replace").rpartition(")")[2].split()[1])


def send(processes: Iterable[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)
