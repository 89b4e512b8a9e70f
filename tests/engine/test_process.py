"""The runner and a worker process that hangs, goes deaf, says nonsense or will not end: nobody else waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from core.common.errors import EngineError
from core.engine import process
from core.engine.answer import Answer
from core.engine.process import WorkerProcess
from core.engine.protocol import Cancel, EngineState, Event, Finished, TextChunk
from core.engine.runner import Runner
from core.engine.sampling_params import Sampling
from core.worker.heartbeat import BEAT_S, Outlet, Pulse
from core.worker.main import obey
from core.worker.preparing import PreparationThread
from core.worker.scheduler import Scheduler
from tests.support.processes import is_running

WAIT_S = 60.0
FAKE, ODD = "tests.support.fake_worker", "tests.support.odd_worker"
# More than a socket's buffers take.
LONG = "Llamas live. " * 20_000


@pytest.fixture
def runner(folder: Path) -> Iterator[Runner]:
    """With the fake worker, ready."""
    made = Runner(FAKE)
    made.load(folder, num_slots=4)
    assert made.wait_while_loading(WAIT_S).phase == "ready"
    yield made
    made.close()


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Runner]]:
    """A runner whose worker is odd in the way that is named, as soon as its load has ended or has to be waited for."""
    made: list[Runner] = []

    def load(name: str) -> Runner:
        made.append(Runner(ODD))
        made[-1].load(Path(name))
        return made[-1]

    yield load
    for runner in made:
        monkeypatch.setattr(process, "WORKER_END_S", 0.0)
        runner.close()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker counts as silent after two missed heartbeats."""
    monkeypatch.setattr(process, "SILENT_S", 3 * BEAT_S)


def until(holds: Callable[[], object]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end_s
        threading.Event().wait(0.01)


@contextmanager
def stopped(runner: Runner) -> Iterator[int]:
    """The worker's process does nothing meanwhile, as one that waits for a GPU, a disk or its memory."""
    pid = runner.worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        if is_running(pid):
            os.kill(pid, signal.SIGCONT)


def in_time(call: Callable[[], object]) -> bool:
    """Whether `call` comes back, tried in a thread of its own: what hangs does not hang the test."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    return not thread.is_alive()


# A worker that does not read ----------------------------------------------------------------------------------------


def test_prompts_for_a_stopped_worker_hold_nobody_up_and_unloading_ends_it(runner: Runner) -> None:
    """Its pipe was written to under the runner's lock: unload(), load() and /metrics waited for ever."""
    with stopped(runner) as pid:
        answers: list[Answer] = []
        assert in_time(lambda: answers.extend(runner.generate(LONG, Sampling()) for _ in range(40)))
        assert runner.running_answers == answers
        assert in_time(runner.unload)
        assert not is_running(pid)
    assert runner.state == EngineState()
    assert {answer.error.key for answer in answers if answer.error} == {"answer_model_unloaded"}
    assert not any(answer.is_running for answer in answers)


def test_another_load_works_while_the_worker_is_stopped(runner: Runner, folder: Path) -> None:
    with stopped(runner) as pid:
        runner.generate(LONG, Sampling())
        assert in_time(lambda: runner.load(folder))
        assert not is_running(pid)
    assert runner.wait_while_loading(WAIT_S).phase == "ready"
    answer = runner.generate("hello", Sampling())
    assert answer.wait(WAIT_S) and answer.text == "You said: hello "


def test_what_gauges_read_needs_no_lock(runner: Runner) -> None:
    answer = runner.generate("forever", Sampling())
    seen: list[object] = []
    with runner.changed:
        assert in_time(
            lambda: seen.extend((runner.state.phase, runner.running_answers, runner.worker_pid, runner.silent_s))
        )
    assert seen[:2] == ["ready", [answer]] and seen[3] == 0.0


def test_nothing_is_lost_when_a_stopped_worker_goes_on(runner: Runner, soon: None) -> None:
    begun = runner.generate("words=100 wait=0.01", Sampling())
    assert begun.wait_for_text(20, WAIT_S)
    with stopped(runner):
        until(lambda: runner.silent_s)
        waiting = [runner.generate(f"words={number} {LONG}", Sampling()) for number in range(1, 9)]
    assert all(answer.wait(WAIT_S) and answer.reason == "end" for answer in [begun, *waiting])
    assert begun.text == "one two three four five " * 20
    assert [len(answer.text.split()) for answer in waiting] == list(range(1, 9))
    assert runner.silent_s == 0.0


def test_a_prompt_that_still_waits_is_taken_back_and_never_computed(runner: Runner) -> None:
    with stopped(runner):
        first = runner.generate(f"words=1 {LONG}", Sampling())
        waiting = runner.generate("hello", Sampling())
        waiting.cancel()
        assert waiting.reason == "cancelled" and runner.running_answers == [first]
    assert first.wait(WAIT_S) and first.reason == "end"
    assert waiting.reason == "cancelled" and waiting.text == ""


def test_stop_ends_an_answer_of_a_silent_worker_which_is_not_asked(runner: Runner, soon: None) -> None:
    answer = runner.generate("forever wait=0.01", Sampling())
    assert answer.wait_for_text(20, WAIT_S)
    with stopped(runner):
        until(lambda: runner.silent_s)
        answer.cancel()
        kept = answer.text
        assert answer.reason == "cancelled" and len(kept) > 20 and runner.running_answers == []
    # What it says of that answer when it goes on is nobody's any more.
    other = runner.generate("hello", Sampling())
    assert other.wait(WAIT_S) and other.text == "You said: hello "
    assert answer.text == kept


def test_more_than_can_wait_is_refused_and_what_ends_things_is_not(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "MAX_WAITING_BYTES", 3 * len(LONG))
    with stopped(runner):
        answers: list[Answer] = []
        with pytest.raises(EngineError) as caught:
            for _ in range(6):
                answers.append(runner.generate(LONG, Sampling()))
        assert caught.value.key == "engine_silent" and caught.value.params["seconds"] >= 1
        assert 2 <= len(answers) <= 4 and runner.running_answers == answers
        answers[-1].cancel()
        assert answers[-1].reason == "cancelled"
        assert runner.generate(LONG, Sampling()).is_running


def test_a_prompt_longer_than_all_that_may_wait_is_taken_where_nothing_waits(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "MAX_WAITING_BYTES", 100)
    answer = runner.generate("hello " * 100, Sampling())
    assert answer.wait(WAIT_S) and answer.reason == "end"


def test_a_worker_that_lives_and_reads_nothing_is_noticed_once_its_pipe_is_full(
    odd: Callable[[str], Runner], soon: None
) -> None:
    runner = odd("reads_nothing")
    assert runner.wait_while_loading(WAIT_S).phase == "ready"
    for _ in range(4):
        runner.generate(LONG, Sampling())
    until(lambda: runner.silent_s)
    assert in_time(runner.unload)


# Signs of life ------------------------------------------------------------------------------------------------------


def test_a_worker_is_silent_while_it_is_stopped_and_no_longer(runner: Runner, soon: None) -> None:
    assert runner.silent_s == 0.0
    with stopped(runner):
        until(lambda: runner.silent_s >= process.SILENT_S)
        assert runner.state.phase == "ready"
    until(lambda: not runner.silent_s)


def test_a_worker_that_stands_still_while_it_loads_is_silent(odd: Callable[[str], Runner], soon: None) -> None:
    runner = odd("frozen")
    until(lambda: runner.silent_s)
    assert runner.state.phase == "loading"
    assert in_time(runner.unload)


def test_a_library_that_takes_long_to_come_is_no_silence(odd: Callable[[str], Runner], soon: None) -> None:
    """With the interpreter's lock held no heartbeat comes, but the process works."""
    runner = odd("slow_library")
    until(lambda: runner.state.fraction == 0.5)
    worker = runner._worker
    assert worker is not None
    until(lambda: time.monotonic() - worker.last_sign_s > 2 * process.SILENT_S or runner.silent_s)
    assert runner.silent_s == 0.0


def test_a_worker_that_never_beats_is_silent(odd: Callable[[str], Runner], soon: None) -> None:
    runner = odd("mute")
    assert runner.wait_while_loading(WAIT_S).phase == "ready"
    until(lambda: runner.silent_s)
    runner.unload()
    assert runner.silent_s == 0.0


def test_a_main_thread_that_is_stuck_is_noticed_although_the_process_beats(odd: Callable[[str], Runner]) -> None:
    """A GPU that hangs: the process lives, and no step ends."""
    runner = odd("stuck")
    assert runner.wait_while_loading(WAIT_S).phase == "ready"
    until(lambda: runner.silent_s > BEAT_S)


def test_a_step_is_stuck_once_it_takes_longer_than_any_does() -> None:
    pulse = Pulse(Outlet(None), longest_s=0.0)  # type: ignore[arg-type]
    assert pulse.stuck_s == 0.0
    with pulse.step():
        assert pulse.stuck_s > 0.0
        pulse.longest_s = WAIT_S
        assert pulse.stuck_s == 0.0
    pulse.longest_s = 0.0
    assert pulse.stuck_s == 0.0


def test_the_real_worker_beats_before_anything_is_loaded(soon: None) -> None:
    ended = threading.Event()
    worker = WorkerProcess("core.worker.main", lambda *_: None, lambda _: ended.set())
    begun_s = worker.last_sign_s
    until(lambda: worker.last_sign_s > begun_s)
    # What it cannot understand may be a prompt for which somebody would wait.
    worker._pipe.send_bytes(b"no command")
    assert ended.wait(WAIT_S)
    assert worker.end_reason().params == {"how": "exit code 1"}


class SchedulerStandin:
    """Stands in for a scheduler that knows one request, for the thread of grammars and for the pipe."""

    def __init__(self) -> None:
        self.requests = [1]
        self.cancelled: list[int] = []
        self.sent: list[Event] = []

    def cancel(self, request: int) -> None:
        self.cancelled.append(request)

    def send(self, event: Event) -> None:
        self.sent.append(event)

    def take(self, request: int) -> bool:
        return False


def test_stop_ends_an_answer_that_the_worker_has_lost_as_well() -> None:
    standin = SchedulerStandin()
    for request in (1, 2):
        obey(cast(Scheduler, standin), cast(PreparationThread, standin), cast(Outlet, standin), Cancel(request))
    assert standin.cancelled == [1]
    assert [(event.request, event.reason) for event in standin.sent if isinstance(event, Finished)] == [
        (2, "cancelled")
    ]


# What cannot be understood ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["unreadable", "no_event", "no_pickle", "huge", "damaged", "lingers"])
def test_a_worker_that_makes_no_sense_while_it_loads_is_ended_and_the_next_load_works(
    odd: Callable[[str], Runner], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listening thread ended with an exception, and the state was "loading" for ever."""
    monkeypatch.setattr(process, "LINGER_S", 0.2)
    runner = odd(name)
    pid = runner.worker_pid
    state = runner.wait_while_loading(WAIT_S)
    assert state.phase == "failed" and state.error is not None and state.error.key == "worker_garbled"
    assert pid is not None
    until(lambda: not is_running(pid))
    runner.load(Path("sane"))
    assert runner.wait_while_loading(WAIT_S).phase == "ready"


def test_a_warm_worker_that_makes_no_sense_is_ended_and_not_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "LINGER_S", 0.0)
    runner = Runner(FAKE)
    runner.warm_worker.start_one()
    pid = runner.warm_worker.pid
    assert pid is not None and runner.warm_worker.wait(WAIT_S)
    monkeypatch.setattr(WorkerProcess, "_receive", lambda _: 1 // 0)
    until(lambda: not is_running(pid))
    assert runner.warm_worker.claim() is None and runner.state == EngineState()
    assert "cannot be understood" in caplog.text


def test_half_a_message_and_then_the_end_is_the_end(odd: Callable[[str], Runner]) -> None:
    state = odd("half").wait_while_loading(WAIT_S)
    assert state.phase == "failed" and state.error is not None
    assert (state.error.key, state.error.params) == ("worker_died", {"how": "exit code 3"})


def test_a_worker_that_makes_no_sense_while_it_answers_leaves_what_was_written(odd: Callable[[str], Runner]) -> None:
    runner = odd("sane")
    assert runner.wait_while_loading(WAIT_S).phase == "ready"
    answer = runner.generate("unfinished", Sampling())
    assert answer.wait_for_text(0, WAIT_S)
    other = runner.generate("unreadable", Sampling())
    assert answer.wait(WAIT_S) and other.wait(WAIT_S)
    assert answer.text == "unfinished" and answer.error is not None and answer.error.key == "worker_garbled"
    assert runner.state.phase == "failed" and runner.worker_pid is None


def test_one_answers_damage_is_not_the_others(odd: Callable[[str], Runner]) -> None:
    runner = odd("sane")
    assert runner.wait_while_loading(WAIT_S).phase == "ready"
    damaged, whole = runner.generate("no text", Sampling()), runner.generate("whole", Sampling())
    assert damaged.wait(WAIT_S) and damaged.error is not None and damaged.error.key == "engine_fault"
    assert whole.wait(WAIT_S) and whole.text == "whole"
    assert runner.running_answers == [] and runner.state.phase == "ready"


def test_a_worker_that_floods_the_pipe_can_be_unloaded(odd: Callable[[str], Runner]) -> None:
    runner = odd("flood")
    until(lambda: runner.state.fraction == 0.5)
    assert in_time(runner.unload)
    assert runner.state == EngineState()


def test_a_listener_that_raises_takes_nothing_from_other_listeners_and_answers(runner: Runner) -> None:
    """It ended the ear that hears the engine: no answer moved again, and unload() raised the same error."""
    answer = runner.generate("words=50 wait=0.001", Sampling())
    calls: list[bool] = []
    is_first = True

    def fail() -> None:
        nonlocal is_first
        if is_first:
            is_first = False
        else:
            raise ValueError("a listener's fault")

    answer.add_listener(fail)
    answer.add_listener(lambda: calls.append(answer.is_running))
    other = runner.generate("hello", Sampling())
    assert answer.wait(WAIT_S) and other.wait(WAIT_S)
    assert answer.reason == other.reason == "end" and calls[-1] is False
    runner.unload()
    assert runner.state.phase == "empty"


def test_a_callers_fault_does_not_end_the_ear(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Event] = []

    def take(_: WorkerProcess, event: Event) -> None:
        heard.append(event)
        raise ValueError("an event's fault")

    def end(_: WorkerProcess) -> None:
        raise ValueError("an end's fault")

    def hear(_: Event) -> None:
        raise ValueError("a warm worker's fault")

    worker = WorkerProcess(FAKE, take, end, is_warm=True, on_imports_done=hear)
    assert worker.settled.wait(WAIT_S) and "a warm worker's fault" in caplog.text
    worker._handle(TextChunk(1, "a", 1))
    worker._handle(TextChunk(1, "b", 2))
    worker.end()
    until(lambda: "an end's fault" in caplog.text)
    assert len(heard) == 2


# The end ------------------------------------------------------------------------------------------------------------


def test_pages_do_not_wait_while_a_worker_that_ignores_the_signal_is_ended(odd: Callable[[str], Runner]) -> None:
    runner = odd("deaf")
    assert runner.wait_while_loading(WAIT_S).phase == "ready"
    pid = runner.worker_pid
    assert pid is not None
    unloading = threading.Thread(target=runner.unload)
    unloading.start()
    until(lambda: runner.state.phase == "empty")
    assert is_running(pid)
    with pytest.raises(EngineError) as caught:
        runner.generate("hello", Sampling())
    assert caught.value.key == "nothing_loaded" and runner.running_answers == []
    unloading.join(WAIT_S)
    assert not unloading.is_alive() and not is_running(pid)


def test_a_load_begins_once_the_worker_before_it_is_gone(
    odd: Callable[[str], Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then it holds the GPU's memory."""
    monkeypatch.setattr(process, "WORKER_END_S", 0.5)
    runner = odd("deaf")
    assert runner.wait_while_loading(WAIT_S).phase == "ready"
    pid, was_running = runner.worker_pid, []
    assert pid is not None
    start = subprocess.Popen

    def watched(*args: object, **options: object) -> subprocess.Popen[bytes]:
        was_running.append(is_running(pid))
        return start(*args, **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(subprocess, "Popen", watched)
    runner.load(Path("sane"))
    assert was_running == [False]
    assert runner.wait_while_loading(WAIT_S).phase == "ready"


def test_an_unload_while_a_load_waits_for_the_worker_before_it_is_the_last_word(
    odd: Callable[[str], Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "WORKER_END_S", 0.5)
    runner = odd("deaf")
    assert runner.wait_while_loading(WAIT_S).phase == "ready"
    loading = threading.Thread(target=runner.load, args=(Path("sane"),))
    loading.start()
    until(lambda: runner.state.phase == "loading")
    runner.unload()
    loading.join(WAIT_S)
    assert runner.state == EngineState() and runner.worker_pid is None


def test_a_process_that_cannot_be_started_is_a_failed_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", fail)
    runner = Runner(FAKE)
    runner.load(Path("tiny"))
    assert runner.state.phase == "failed" and runner.state.model == "tiny"
    assert runner.state.error is not None and runner.state.error.key == "worker_start"


def test_a_worker_that_dies_before_it_is_known_is_a_failed_load(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner(FAKE)
    claim = runner.warm_worker.claim

    def dead() -> WorkerProcess:
        runner.warm_worker.start_one()
        assert (worker := claim()) is not None
        os.kill(worker.pid, signal.SIGKILL)
        until(lambda: worker.has_ended)
        return worker

    monkeypatch.setattr(runner.warm_worker, "claim", dead)
    runner.load(Path("tiny"))
    state = runner.wait_while_loading(WAIT_S)
    assert state.phase == "failed" and state.error is not None and state.error.key == "worker_killed"


def test_loads_and_unloads_leave_no_file_and_no_thread_behind(folder: Path) -> None:
    runner = Runner(FAKE)

    def once() -> tuple[int, int]:
        runner.load(folder)
        assert runner.wait_while_loading(WAIT_S).phase == "ready"
        runner.unload()
        until(lambda: not any(thread.name.startswith("engine-") for thread in threading.enumerate()))
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    first = once()
    assert [once() for _ in range(3)] == [first] * 3
