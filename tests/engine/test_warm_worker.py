"""The worker that waits ready: when it is started, who gets it, what its death means; with the fake worker's process,
and once with the real one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from core.common.paths import ROOT
from core.engine.process import WorkerProcess
from core.engine.protocol import Event
from core.engine.runner import Runner
from core.engine.sampling_params import Sampling
from core.engine.warm_worker import MAX_DEATHS, MIN_AVAILABLE_BYTES, WarmWorker
from core.worker.main import NICENESS, check_untouched
from tests.support.processes import is_running, wait_until

WAIT_S = 120.0
FAKE = "tests.support.fake_worker"
PLENTY = 2 * MIN_AVAILABLE_BYTES


@pytest.fixture
def runner() -> Iterator[Runner]:
    made = Runner(FAKE)
    yield made
    made.close()


class Starter:
    """Starts fake workers that wait, counts them, and says when one is started or ends."""

    def __init__(self) -> None:
        self.workers: list[WorkerProcess] = []
        self.ended = threading.Semaphore(0)
        self.started = threading.Semaphore(0)
        self.is_idle = True
        self.memory_bytes = PLENTY
        self.asked = threading.Semaphore(0)

    def start(self) -> WorkerProcess:
        self.workers.append(WorkerProcess(FAKE, self._ignore, lambda _: self.ended.release(), is_warm=True))
        self.started.release()
        return self.workers[-1]

    def ask_idle(self) -> bool:
        self.asked.release()
        return self.is_idle

    def _ignore(self, worker: WorkerProcess, event: Event) -> None:
        raise AssertionError(event)


@pytest.fixture
def starter() -> Iterator[Starter]:
    made = Starter()
    yield made
    for worker in made.workers:
        worker.end()


@pytest.fixture
def warm(starter: Starter) -> Iterator[WarmWorker]:
    made = WarmWorker(starter.start, starter.ask_idle, lambda: starter.memory_bytes)
    yield made
    made.close()


def warm_pid(runner: Runner) -> int:
    assert runner.warm_worker.wait(WAIT_S)
    pid = runner.warm_worker.pid
    assert pid is not None
    return pid


def test_unless_it_is_asked_for_there_is_none(runner: Runner, folder: Path) -> None:
    assert not runner.warm_worker.wait(0.0)
    runner.load(folder)
    assert runner.wait_while_loading(WAIT_S).phase == "ready"
    assert not runner.warm_worker.wait(0.0)


def test_a_load_takes_the_warm_worker_and_another_one_follows(runner: Runner, folder: Path) -> None:
    runner.warm_worker.start(idle_s=0.0)
    first = warm_pid(runner)
    runner.load(folder)
    assert runner.worker_pid == first
    assert runner.wait_while_loading(WAIT_S).phase == "ready"
    answer = runner.generate("hello", Sampling())
    assert answer.wait(WAIT_S)
    assert (answer.reason, answer.text) == ("end", "You said: hello ")
    second = warm_pid(runner)
    assert second != first
    runner.load(folder)
    assert runner.worker_pid == second
    assert not is_running(first)
    assert runner.wait_while_loading(WAIT_S).phase == "ready"


def test_the_time_from_the_click_is_the_states(runner: Runner, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_FAKE_LOAD_S", "0.3")
    runner.load(folder)
    assert runner.state.ready_after_s == 0.0
    state = runner.wait_while_loading(WAIT_S)
    assert state.facts is not None
    # The engine's own time is counted inside of it; the process has to start before.
    assert state.ready_after_s > state.facts.load_s >= 0.3


def test_unloading_leaves_the_warm_worker_for_the_next_load_and_closing_ends_both(runner: Runner, folder: Path) -> None:
    runner.load(folder)
    assert runner.wait_while_loading(WAIT_S).phase == "ready"
    engine = runner.worker_pid
    assert engine is not None
    runner.warm_worker.start(idle_s=0.0)
    waiting = warm_pid(runner)
    runner.unload()
    assert not is_running(engine)
    assert is_running(waiting)
    runner.close()
    assert not is_running(waiting)
    assert not runner.warm_worker.wait(0.0)
    # What comes after the end of the dashboard still gets an answer.
    runner.load(folder)
    assert runner.wait_while_loading(WAIT_S).phase == "ready"


def test_a_killed_warm_worker_is_no_error_and_the_load_gets_a_worker_of_its_own(runner: Runner, folder: Path) -> None:
    runner.warm_worker.start(idle_s=3600.0)
    runner.warm_worker.start_one()
    pid = runner.warm_worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid))
    assert runner.state.phase == "empty" and runner.state.error is None
    runner.load(folder)
    assert runner.worker_pid not in (None, pid)
    assert runner.wait_while_loading(WAIT_S).phase == "ready"


def test_a_dead_warm_worker_is_replaced_a_few_times_and_then_no_more(warm: WarmWorker, starter: Starter) -> None:
    keeper = warm.start(idle_s=0.0)
    for death in range(MAX_DEATHS):
        assert starter.started.acquire(timeout=WAIT_S)
        assert warm.wait(WAIT_S)
        os.kill(starter.workers[death].pid, signal.SIGKILL)
        assert starter.ended.acquire(timeout=WAIT_S)
    keeper.join(WAIT_S)
    assert not keeper.is_alive()
    assert len(starter.workers) == MAX_DEATHS
    assert warm.claim() is None


def test_nothing_is_started_while_the_engine_has_work(warm: WarmWorker, starter: Starter) -> None:
    starter.is_idle = False
    warm.start(idle_s=0.0)
    for _ in range(3):
        assert starter.asked.acquire(timeout=WAIT_S)
    assert starter.workers == []
    starter.is_idle = True
    assert warm.wait(WAIT_S)


def test_nothing_is_started_on_a_host_with_little_memory(warm: WarmWorker, starter: Starter) -> None:
    starter.memory_bytes = MIN_AVAILABLE_BYTES - 1
    warm.start(idle_s=0.0)
    for _ in range(3):
        assert starter.asked.acquire(timeout=WAIT_S)
    assert starter.workers == []
    starter.memory_bytes = MIN_AVAILABLE_BYTES
    assert warm.wait(WAIT_S)


def test_a_host_that_can_start_no_process_gets_none(starter: Starter) -> None:
    tries = 0

    def fail() -> WorkerProcess:
        nonlocal tries
        tries += 1
        raise OSError("Cannot allocate memory")

    warm = WarmWorker(fail, lambda: True, lambda: PLENTY)
    warm.start(idle_s=0.0).join(WAIT_S)
    assert tries == MAX_DEATHS
    assert warm.claim() is None


def test_any_fault_in_starting_one_is_survived_a_few_times(starter: Starter, caplog: pytest.LogCaptureFixture) -> None:
    warm = WarmWorker(starter.start, lambda: 1 // 0 > 0, lambda: PLENTY)
    keeper = warm.start(idle_s=0.0)
    keeper.join(WAIT_S)
    assert not keeper.is_alive() and warm.claim() is None and starter.workers == []
    assert caplog.text.count("division") == MAX_DEATHS


def test_a_process_that_takes_long_to_start_holds_no_load_and_no_end_up(starter: Starter) -> None:
    starts, may_start = threading.Event(), threading.Event()

    def start() -> WorkerProcess:
        starts.set()
        assert may_start.wait(WAIT_S)
        return starter.start()

    warm = WarmWorker(start, starter.ask_idle, lambda: PLENTY)
    warm.start(idle_s=0.0)
    assert starts.wait(WAIT_S)
    assert warm.claim() is None
    warm.close()
    may_start.set()
    assert starter.ended.acquire(timeout=WAIT_S) and warm.claim() is None


def test_the_engine_is_idle_when_it_neither_loads_nor_answers(runner: Runner, folder: Path) -> None:
    assert runner.is_idle
    runner.load(folder)
    assert not runner.is_idle
    assert runner.wait_while_loading(WAIT_S).phase == "ready"
    assert runner.is_idle
    answer = runner.generate("forever", Sampling())
    assert not runner.is_idle
    answer.cancel()
    assert answer.wait(WAIT_S)
    assert runner.is_idle


def test_the_real_worker_has_imported_everything_before_it_is_asked(folder: Path) -> None:
    runner, seen = Runner(), []
    try:
        runner.warm_worker.start(idle_s=0.0)
        pid = warm_pid(runner)
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "libtorch" in maps and "tokenizers" in maps
        # Only its imports gave way to everything: the engine that it becomes does not.
        assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
        runner.load(folder)
        assert runner.worker_pid == pid
        with runner.changed:
            while runner.state.phase == "loading":
                seen.append((runner.state.stage, runner.state.fraction))
                assert runner.changed.wait(WAIT_S)
        assert runner.state.phase == "ready", runner.state
        assert [fraction for _, fraction in seen] == sorted(fraction for _, fraction in seen)
        answer = runner.generate("Hello", Sampling(temperature=0.0, max_new_tokens=4))
        assert answer.wait(WAIT_S)
        assert answer.error is None
    finally:
        runner.close()


def test_a_load_may_come_while_the_warm_worker_still_imports(folder: Path) -> None:
    runner = Runner()
    try:
        runner.warm_worker.start_one()
        pid = runner.warm_worker.pid
        runner.load(folder)
        assert runner.worker_pid == pid
        assert runner.wait_while_loading(WAIT_S).phase == "ready", runner.state
    finally:
        runner.close()


def test_what_a_warm_worker_imports_leaves_the_gpu_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.watched_imports"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_a_warm_worker_whose_imports_touched_a_gpu_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    check_untouched()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(SystemExit):
        check_untouched()
