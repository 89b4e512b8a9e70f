"""README's first command as a newcomer to a GPU host sees it, from an empty .venv to the last MiB given back.

    python3 -m benchmarks.first_start_on_gpu [--work DIR] [--port N] [--limit-s N] [--here] [--cpu]

Copies the project into a folder of its own in DIR (by itself among the temporary ones), where models, history and
caches go too, and removes all that at its end. One line a step: OK or FAULT, its seconds, what was seen; exit code 1
after a fault. Needs the standard library only; pip gets everything else, as in ./llamadeck: what it is told by
PIP_INDEX_URL, or offline by PIP_NO_INDEX and PIP_FIND_LINKS, holds here too. --here starts the project where it lies,
with the .venv that it has; --cpu does without a GPU.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.first_start_steps import STARTER, Fault, FirstStart

ROOT = Path(__file__).resolve().parent.parent
# What lies beside a clone's code once it was used: at its root, and anywhere.
NOT_COPIED = (".git", ".venv", ".venv.*", "models", "data", "shared", "test-results")
NEVER_COPIED = ("__pycache__", "secrets.toml")
LIMIT_S = 460.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def work_folder(given: Path | None) -> Iterator[Path]:
    """A new folder within `given`, or within the temporary ones; removed at the end, however that comes."""
    if given:
        given.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="first-start-", dir=given)).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def left_out(folder: str, names: list[str]) -> set[str]:
    """What of a folder is not copied; packages may be called as what lies at the root, such as ui/shared."""
    patterns = NEVER_COPIED + NOT_COPIED * (Path(folder) == ROOT)
    return shutil.ignore_patterns(*patterns)(folder, names)


def run_steps(first: FirstStart) -> bool:
    """Whether all went well. After the first fault no further step means anything."""
    steps: list[tuple[str, Callable[[], str]]] = [
        ("the driver answers", first.driver),
        ("./llamadeck run: .venv, starter, /health", first.start),
        ("./llamadeck doctor", first.doctor),
        ("./llamadeck gpus", first.gpus),
        (f"./llamadeck fit {STARTER}", first.fit),
        ("SIGTERM", first.stop),
        (f"./llamadeck run --model {STARTER}", first.start_with_model),
        ("an answer over the API", first.answer),
        *([("the model is on the GPU", first.on_the_gpu)] if first.wants_gpu else []),
        ("SIGTERM: all memory is back", first.stop),
        ("./llamadeck bench --quick", first.bench),
    ]
    for name, step in steps:
        begin_s = time.monotonic()
        try:
            status, seen = "OK", step()
        except (Fault, OSError, ValueError, KeyError, subprocess.TimeoutExpired) as error:
            status, seen = "FAULT", f"{error or type(error).__name__}"
        print(f"{status:6}{time.monotonic() - begin_s:7.1f} s  {name}: {seen}", flush=True)
        if status == "FAULT":
            print(f"The last lines of what was said:{first.last_lines()}", flush=True)
            return False
    return True


def end(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, metavar="DIR", help="where a folder for everything is made")
    parser.add_argument("--port", type=int, help="the dashboard's port, by itself a free one")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, metavar="N", help=f"for all steps, {LIMIT_S:.0f}")
    parser.add_argument("--here", action="store_true", help="start this clone with its .venv, not a fresh copy")
    parser.add_argument("--cpu", action="store_true", help="do without a GPU")
    options = parser.parse_args()
    begin_s = time.monotonic()
    signal.signal(signal.SIGTERM, end)
    with work_folder(options.work) as work:
        project = ROOT
        if not options.here:
            project = work / "clone"
            shutil.copytree(ROOT, project, ignore=left_out)
        first = FirstStart(
            project, work, options.port or free_port(), begin_s + options.limit_s, wants_gpu=not options.cpu
        )
        try:
            is_well = run_steps(first)
        except KeyboardInterrupt:
            print("FAULT  stopped", flush=True)
            is_well = False
        finally:
            first.end_all()
    print(f"{'OK' if is_well else 'FAULT':6}{time.monotonic() - begin_s:7.1f} s  all together", flush=True)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
