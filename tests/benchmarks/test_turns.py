"""Turns on one card: who stands still while one measures. The processes here are numbers; tests of sessions have real
ones."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from benchmarks import turns


class Machine:
    """Processes with their parents; what a round of reading them begins stands in `begun`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, parents: dict[int, int], begun: dict[int, int]) -> None:
        self.parents, self.begun, self.num_reads, self.sent = parents, begun, 0, list[int]()
        monkeypatch.setattr(turns, "processes", self.read)
        monkeypatch.setattr(turns, "send", self.send)

    def read(self) -> Iterator[tuple[int, int]]:
        self.num_reads += 1
        yield from list(self.parents.items())

    def send(self, processes: set[int], number: signal.Signals) -> None:
        assert number == signal.SIGSTOP
        self.sent += sorted(processes)
        self.parents |= self.begun


def test_all_jobs_but_ones_own_stand_still_with_what_they_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes were read once for each job before the first was stopped: those of a busy machine are thousands."""
    parents = {1: 0, 10: 1, 11: 10, 12: 11, 20: 1, 21: 20, 30: 1, 99: 1}
    machine = Machine(monkeypatch, parents, begun={22: 21})
    assert turns.stop([10, 20, 30, 40], spared=12) == {20, 21, 22, 30}
    # One that was begun while the others were stopped; nothing new the third time.
    assert (machine.sent, machine.num_reads) == ([20, 21, 30, 22], 3)


def test_one_whose_parent_ended_meanwhile_does_not_stop_its_own_job(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, {1: 0, 10: 1, 11: 10, 20: 1}, begun={11: 1})
    assert turns.stop([10, 20], spared=11) == {20}
    assert machine.sent == [20]


def test_one_that_measures_alone_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, {1: 0, 10: 1}, begun={})
    assert turns.stop([10], spared=10) == set() and machine.num_reads == 1
