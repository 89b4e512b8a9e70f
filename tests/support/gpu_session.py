"""What the GPU tests have in common: what takes long is begun as soon as they are collected, and used while it lasts.

Compilers run on all cores and warm workers import their libraries while the first tests run; what waits for them comes
last. All of it is left out where no GPU test was chosen.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from tempfile import TemporaryDirectory

import pytest

from core.common.paths import ROOT
from core.engine.runner import Runner

# Two loads of one test at most.
NUM_RUNNERS = 4
MAX_COMPILERS = 12


class GpuSession:
    """What was begun for the tests of this run."""

    def __init__(self, tests: Sequence[str]) -> None:
        cores = os.cpu_count() or 1
        self._claims = TemporaryDirectory()
        self._compilers = [compiler(self._claims.name) for _ in range(max(1, min(MAX_COMPILERS, cores - 4)))]
        # What no compiler had begun: a test compiles it, and waits.
        self.compiled_in_line: list[str] = []
        self._watch_compiling()
        self._runners: list[Runner] = []
        if any("test_gpu_load" in test for test in tests):
            self._runners = [Runner() for _ in range(NUM_RUNNERS)]
            for runner in self._runners:
                runner.warm_worker.start(idle_s=0.0)

    def runner(self) -> Runner:
        """One whose warm worker waits, or soon does; whoever takes it closes it."""
        return self._runners.pop() if self._runners else Runner()

    def _watch_compiling(self) -> None:
        from core.worker.kernels import nvrtc
        from tests.support.compile_ahead import compile_each_once

        compile_each_once()
        plain = nvrtc._compile

        def watched(source: str, options: Sequence[str]) -> bytes:
            begin_s = time.monotonic()
            code = plain(source, options)
            test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" (")[0]
            defines = " ".join(option for option in options if option.startswith("-D"))
            self.compiled_in_line.append(f"{time.monotonic() - begin_s:.1f} s in {test}: {defines}")
            return code

        nvrtc._compile = watched

    def wait_for_compilers(self) -> None:
        """Until nothing that was begun here takes or gives back memory of the GPU."""
        for process in self._compilers:
            process.wait()

    def end(self) -> None:
        for runner in self._runners:
            runner.close()
        for process in self._compilers:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the compilers that it runs
            process.wait()
        self._claims.cleanup()


def compiler(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.compile_ahead", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def order(items: list[pytest.Item]) -> None:
    """First what needs none of our kernels, last what waits for warm workers; all else stays where it is."""
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    if item.get_closest_marker("gpu") is None:
        return 0
    if "test_gpu_load" in item.nodeid:
        return 2
    if "test_gpu_quantize" in item.nodeid:
        return 0
    return 0 if "test_gpu_kernels" in item.nodeid and "llamadeck" not in item.nodeid else 1


def begin(items: Sequence[pytest.Item]) -> GpuSession | None:
    """Begin what the GPU tests among `items` need, where there is a GPU for them."""
    tests = [item.nodeid for item in items if item.get_closest_marker("gpu")]
    torch = sys.modules.get("torch")
    return GpuSession(tests) if tests and torch is not None and torch.cuda.is_available() else None
