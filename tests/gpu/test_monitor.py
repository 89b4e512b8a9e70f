"""The GPU sampler on a clock that the tests turn."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from core.gpu.monitor import SAMPLES_KEPT, Monitor
from core.gpu.snapshot import GpuSnapshot

if TYPE_CHECKING:
    from tests.support.nvml_standin import Standin

pytest_plugins = ("tests.support.nvml_standin",)


class Clock:
    """A clock that moves when a reading takes its time or the sampler waits."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Reader:
    """Takes `seconds` for each snapshot, one after the other, and fails where told to."""

    def __init__(self, clock: Clock, *seconds: float, fails_at: int = -1) -> None:
        self.clock = clock
        self.seconds = seconds
        self.fails_at = fails_at
        self.calls = 0

    def __call__(self) -> GpuSnapshot:
        call, self.calls = self.calls, self.calls + 1
        began_s = self.clock.now_s
        self.clock.now_s += self.seconds[call % len(self.seconds)]
        if call == self.fails_at:
            raise RuntimeError("the driver is gone")
        return GpuSnapshot(time_s=began_s)


class Waits(threading.Event):
    """An event whose waits turn the clock instead of sleeping, and which is set after `count` of them."""

    def __init__(self, clock: Clock, count: int) -> None:
        super().__init__()
        self.clock = clock
        self.count = count
        self.waited_s: list[float] = []
        self.over = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waited_s.append(round(timeout, 6))
        self.clock.now_s += timeout
        if len(self.waited_s) >= self.count:
            self.set()
            self.over.set()
        return self.is_set()


def run_to_the_end(reader: Callable[[], GpuSnapshot], waits: Waits) -> Monitor:
    monitor = Monitor(reader, waits.clock, lambda: waits)
    monitor.start()
    waits.over.wait()
    monitor.stop()
    return monitor


def times_s(samples: list[GpuSnapshot]) -> list[float]:
    return [round(sample.time_s, 6) for sample in samples]


def test_samples_keep_the_beat_whatever_a_reading_takes() -> None:
    clock = Clock()
    waits = Waits(clock, 4)
    monitor = run_to_the_end(Reader(clock, 0.3, 0.01), waits)
    assert waits.waited_s == [0.7, 0.99, 0.7, 0.99]
    assert times_s(monitor.history(60)) == [100, 101, 102, 103]


def test_a_slow_reading_skips_beats_and_shifts_none() -> None:
    clock = Clock()
    monitor = run_to_the_end(Reader(clock, 0.1, 2.4, 0.1, 1.0), Waits(clock, 5))
    assert times_s(monitor.history(60)) == [100, 101, 104, 105, 106]


def test_a_failing_reading_is_a_sample_that_says_so_and_the_next_follows() -> None:
    clock = Clock()
    reader = Reader(clock, 0.1, fails_at=1)
    run_to_the_end(reader, waits := Waits(clock, 3))
    assert (reader.calls, len(waits.waited_s)) == (3, 3)


def test_a_failure_is_the_latest_sample() -> None:
    clock = Clock()
    latest = run_to_the_end(Reader(clock, 0.1, fails_at=0), Waits(clock, 1)).latest()
    assert latest is not None and latest.error is not None
    assert latest.error.key == "gpu_read_failed"
    assert "the driver is gone" in str(latest.error.params["reason"])


def test_before_the_first_sample_there_is_none() -> None:
    monitor = Monitor(Reader(Clock(), 0.1))
    assert monitor.latest() is None
    assert monitor.history(60) == []


def test_an_hour_is_kept_and_no_more() -> None:
    clock = Clock()
    monitor = run_to_the_end(Reader(clock, 0.0), Waits(clock, SAMPLES_KEPT + 100))
    samples = monitor.history(10 * SAMPLES_KEPT)
    assert (len(samples), samples[0].time_s, samples[-1].time_s) == (SAMPLES_KEPT, 200, 3799)
    assert monitor.latest() is samples[-1]


@pytest.mark.parametrize(("seconds", "count"), [(0, 1), (1, 2), (9.5, 10), (99, 20)])
def test_history_is_as_long_as_asked(seconds: float, count: int) -> None:
    clock = Clock()
    monitor = run_to_the_end(Reader(clock, 0.1), Waits(clock, 20))
    assert len(monitor.history(seconds)) == count


def test_starting_twice_starts_one_thread_and_stopping_twice_is_no_error() -> None:
    events: list[threading.Event] = []
    sampled = threading.Event()

    def new_event() -> threading.Event:
        events.append(threading.Event())
        return events[-1]

    def read() -> GpuSnapshot:
        sampled.set()
        return GpuSnapshot(time_s=1.0)

    monitor = Monitor(read, new_event=new_event)
    monitor.start()
    monitor.start()
    sampled.wait()
    monitor.stop()
    monitor.stop()
    assert [event.is_set() for event in events] == [True]
    assert all(thread.name != "gpu-monitor" for thread in threading.enumerate())


def test_it_starts_again_after_a_stop_and_keeps_what_it_had() -> None:
    clock = Clock()
    runs = [Waits(clock, 2), Waits(clock, 3)]
    pending = iter(runs)
    monitor = Monitor(Reader(clock, 0.1), clock, lambda: next(pending))
    for waits in runs:
        monitor.start()
        waits.over.wait()
        monitor.stop()
    assert len(monitor.history(3600)) == 5


def test_it_reads_the_gpus_of_this_machine(nvml_standin: Standin) -> None:
    code = (
        "import threading\n"
        "from core.gpu.monitor import Monitor\n"
        "monitor = Monitor()\n"
        "monitor.start()\n"
        "while monitor.latest() is None:\n"
        "    threading.Event().wait(0.01)\n"
        "monitor.stop()\n"
        "print(monitor.latest().gpus[0].name)\n"
    )
    assert nvml_standin.run(code) == "NVIDIA A40"
