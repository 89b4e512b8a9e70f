"""How many threads compute on a CPU, by what others use of it: with a clock and a processor of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from core.worker.decode import cpu_threads as cores
from core.worker.decode.cpu_threads import INTERVAL_S, AdaptiveThreads, num_cores, used_s

STAT = "cpu  100 20 30 4000 50 6 7 8 9 10\ncpu0 1 1 1 1 1 1 1 1 1 1\n"


class Machine:
    """Two cores; `others_s` and `own_s` are what was used of them so far."""

    def __init__(self) -> None:
        self.time_s, self.own_s, self.others_s = 100.0, 5.0, 40.0

    def run(self, seconds: float, own: float, others: float) -> None:
        """Let time pass, with shares of one core in use."""
        self.time_s += seconds
        self.own_s += seconds * own
        self.others_s += seconds * others


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setattr(cores, "num_cores", lambda: 2)
    num_before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Machine()
    torch.set_num_threads(num_before)


@pytest.fixture
def watch(machine: Machine) -> AdaptiveThreads:
    return AdaptiveThreads(lambda: machine.own_s + machine.others_s, lambda: machine.own_s, lambda: machine.time_s)


def test_all_cores_compute_while_nothing_else_runs(machine: Machine, watch: AdaptiveThreads) -> None:
    machine.run(1.0, own=1.0, others=0.05)
    watch.adapt()
    assert torch.get_num_threads() == 2
    machine.run(1.0, own=1.9, others=0.05)
    watch.adapt()
    assert torch.get_num_threads() == 2


def test_one_core_is_left_as_soon_as_something_else_wants_it(machine: Machine, watch: AdaptiveThreads) -> None:
    """Two threads that a busy page displaced wrote 2 tokens a second."""
    machine.run(1.0, own=1.0, others=0.0)
    watch.adapt()
    machine.run(INTERVAL_S, own=1.2, others=0.8)
    watch.adapt()
    assert torch.get_num_threads() == 1


def test_between_two_looks_nothing_changes(machine: Machine, watch: AdaptiveThreads) -> None:
    machine.run(INTERVAL_S * 0.6, own=1.0, others=0.0)
    watch.adapt()
    assert torch.get_num_threads() == 1
    machine.run(INTERVAL_S * 0.6, own=1.0, others=0.0)
    watch.adapt()
    assert torch.get_num_threads() == 2


def test_where_the_machine_does_not_tell_one_core_is_left(machine: Machine) -> None:
    watch = AdaptiveThreads(lambda: None, lambda: machine.own_s, lambda: machine.time_s)
    torch.set_num_threads(2)
    machine.run(1.0, own=1.0, others=0.0)
    watch.adapt()
    assert torch.get_num_threads() == 1


def test_what_the_cores_have_done_is_read_from_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", lambda _: 100)
    (tmp_path / "stat").write_text(STAT)
    assert used_s(tmp_path / "stat") == pytest.approx(1.71)


@pytest.mark.parametrize("written", ["", "cpu 1 2", "cpu a b c d e f g h", None])
def test_a_kernel_that_says_something_else_says_nothing(tmp_path: Path, written: str | None) -> None:
    if written is not None:
        (tmp_path / "stat").write_text(written)
    assert used_s(tmp_path / "stat") is None


def test_this_machine_has_cores() -> None:
    assert num_cores() >= 1
