"""An engine that stands still now and then, under load: 24 times SIGSTOP and SIGCONT at random moments.

Run as `python -m benchmarks.stopped_worker [--pauses 24] [--longest 6] [--seed 1] [--json]`. A process that is stopped
is one that waits for a GPU, a disk or its memory. The load is that of benchmarks/api_load.py with the starter model:
clients of the API that stream, open dashboards, and a person in Chromium who goes from page to page; /health and
/ready are asked all the while. It fails (exit code 1) where an answer was lost or mixed up, a page or /health took over
1 s, or /ready did not notice a pause that was long enough.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from playwright.sync_api import sync_playwright

from benchmarks.api_load import Found, Load, dashboard, person, settled, summary, tell, watch
from core.engine.process import SILENT_S

WORKER = "core.worker.main"
SHORTEST_S, BETWEEN_S = 0.2, (0.3, 2.0)
PROBE_S, MAX_HEALTH_MS = 0.1, 1000
# From here on a pause has to be noticed.
NOTICED_S = SILENT_S + 1.0


def worker_of(dashboard_pid: int) -> int:
    """The engine's process: the oldest one, as those that wait for the next load came after it."""
    command = ["ps", "-o", "pid=,args=", "--sort=start_time", "--ppid", str(dashboard_pid)]
    rows = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return next(int(row.split()[0]) for row in rows if WORKER in row)


class Pauses(threading.Thread):
    """Stops the worker and lets it go on. `taken_s` are the pauses so far, `is_paused` whether one is now."""

    def __init__(self, pid: int, count: int, longest_s: float, seed: int) -> None:
        super().__init__(name="pauses")
        draw = random.Random(seed)
        self._pid = pid
        self._plan = [(draw.uniform(*BETWEEN_S), draw.uniform(SHORTEST_S, longest_s)) for _ in range(count)]
        self.taken_s: list[float] = []
        self.total_s = sum(before_s + pause_s for before_s, pause_s in self._plan)

    def run(self) -> None:
        for before_s, pause_s in self._plan:
            time.sleep(before_s)
            os.kill(self._pid, signal.SIGSTOP)
            try:
                time.sleep(pause_s)
            finally:
                os.kill(self._pid, signal.SIGCONT)
            self.taken_s.append(pause_s)


class Probes:
    """Asks /health and /ready all the time: milliseconds of each, and how often /ready was no longer and again."""

    def __init__(self, url: str) -> None:
        self.took_ms: dict[str, list[float]] = {"/health": [], "/ready": []}
        self.problems: list[str] = []
        self.num_silent = 0
        self._url, self._closing = url, threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run, name="probes")
        thread.start()
        try:
            yield
        finally:
            self._closing.set()
            thread.join()

    def _run(self) -> None:
        was_ready = True
        with httpx2.Client(base_url=self._url) as client:
            while not self._closing.wait(PROBE_S):
                statuses = {path: self._ask(client, path) for path in self.took_ms}
                if statuses["/health"] != 200:
                    self.problems.append(f"/health: {statuses['/health']}")
                is_ready = statuses["/ready"] == 200
                self.num_silent += was_ready and not is_ready
                was_ready = is_ready

    def _ask(self, client: httpx2.Client, path: str) -> int | str:
        begin_s = time.monotonic()
        try:
            return client.get(path).status_code
        except httpx2.HTTPError as error:
            return type(error).__name__
        finally:
            self.took_ms[path].append((time.monotonic() - begin_s) * 1000)


def run(count: int, longest_s: float, seed: int) -> Found:
    with tempfile.TemporaryDirectory() as home, dashboard(Path(home)) as (url, pid), sync_playwright() as playwright:
        page = person(playwright, url)
        load, probes = Load(url), Probes(url)
        pauses = Pauses(worker_of(pid), count, longest_s, seed)
        load.start()
        pauses.start()
        with probes.running():
            took_ms, held_mib = watch(page, pid, pauses.total_s)
            pauses.join()
            load.stop()
        counted = settled(url)
    (figures, problems), (of_the_pauses, more) = summary(load, took_ms, held_mib, counted), of_pauses(pauses, probes)
    return figures | of_the_pauses, problems + more


def of_pauses(pauses: Pauses, probes: Probes) -> Found:
    problems = [*probes.problems]
    worst_ms = {path: round(max(took_ms)) for path, took_ms in probes.took_ms.items()}
    problems += [f"{path} took {took_ms} ms" for path, took_ms in worst_ms.items() if took_ms > MAX_HEALTH_MS]
    num_long = sum(pause_s >= NOTICED_S for pause_s in pauses.taken_s)
    if probes.num_silent < num_long:
        problems.append(f"of {num_long} long pauses {probes.num_silent} were noticed")
    figures: dict[str, object] = {
        "pauses": len(pauses.taken_s),
        "paused_s": round(sum(pauses.taken_s), 1),
        "longest_pause_s": round(max(pauses.taken_s), 1),
        "noticed": probes.num_silent,
        "health_max_ms": worst_ms["/health"],
        "ready_max_ms": worst_ms["/ready"],
    }
    return figures, problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pauses", type=int, default=24)
    parser.add_argument("--longest", type=float, default=6.0, help="seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    return tell(run(arguments.pauses, arguments.longest, arguments.seed), arguments.json)


if __name__ == "__main__":
    sys.exit(main())
