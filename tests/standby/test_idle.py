"""What happens once nothing was done for long, by a clock of the test's own: when, what puts it off, what counts."""

from __future__ import annotations

import os
import signal
from datetime import date
from pathlib import Path

import pytest

from core.engine.protocol import EngineState
from core.standby.idle import IdleWatch
from core.standby.idle_day import Day, IdleDay
from core.standby.settings import COMMAND, idle_minutes, set_idle_minutes
from tests.support.processes import wait_until


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class StandinEngine:
    """A loaded model that can sleep; `running_answers` are as many as the test says."""

    def __init__(self) -> None:
        self.state = EngineState("ready", "tiny")
        self.running_answers: list = []
        self.used_s = 0.0

    def sleep(self) -> bool:
        self.state = EngineState()
        return True


class Desk:
    """The watch and all that it looks at. `is_busy` is what a download would say."""

    def __init__(self) -> None:
        self.clock, self.boot_clock, self.engine, self.is_busy = Clock(), Clock(), StandinEngine(), False
        self.watch = IdleWatch(self.engine, lambda: self.is_busy, self.clock, self.boot_clock)

    def pass_s(self, seconds: float) -> None:
        """Until a command that was begun has ended."""
        self.clock.now_s += seconds
        self.watch.poll()
        wait_until(self.has_ended)

    def has_ended(self) -> bool:
        if self.watch.running_command is not None:
            self.watch.poll()
        return self.watch.running_command is None


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv(COMMAND, f"echo done >> {tmp_path / 'ran'}")
    return Desk()


def runs(folder: Path) -> int:
    path = folder / "ran"
    return len(path.read_text("utf-8").splitlines()) if path.exists() else 0


def test_nothing_happens_as_long_as_nobody_chose_it(desk: Desk, tmp_path: Path) -> None:
    desk.pass_s(10_000_000)
    assert desk.engine.state.phase == "ready" and not runs(tmp_path)
    assert desk.watch.left_s("unload") is None and desk.watch.left_s("command") is None


def test_a_model_that_nobody_uses_is_unloaded_in_time(desk: Desk) -> None:
    set_idle_minutes("unload", 5)
    desk.pass_s(299)
    assert desk.engine.state.phase == "ready" and desk.watch.left_s("unload") == 1
    desk.pass_s(1)
    assert desk.engine.state.phase == "empty" and desk.watch.left_s("unload") is None


def test_the_command_is_run_once_and_again_only_after_another_use(desk: Desk, tmp_path: Path) -> None:
    set_idle_minutes("command", 10)
    desk.pass_s(599)
    assert desk.watch.left_s("command") == 1 and not runs(tmp_path)
    desk.pass_s(1)
    desk.pass_s(3600)
    assert runs(tmp_path) == 1 and desk.watch.left_s("command") is None
    desk.watch.note()
    desk.pass_s(1)
    desk.pass_s(600)
    assert runs(tmp_path) == 2


def test_what_works_puts_both_off(desk: Desk, tmp_path: Path) -> None:
    set_idle_minutes("unload", 5)
    set_idle_minutes("command", 5)
    for begin, end in (
        (lambda: desk.engine.running_answers.append(object()), lambda: desk.engine.running_answers.clear()),
        (lambda: setattr(desk, "is_busy", True), lambda: setattr(desk, "is_busy", False)),
        (lambda: setattr(desk.engine, "used_s", desk.clock.now_s + 3600), lambda: None),
        (lambda: setattr(desk.engine, "state", EngineState("loading", "tiny")),
         lambda: setattr(desk.engine, "state", EngineState("ready", "tiny"))),
        (lambda: None, desk.watch.note),
    ):  # fmt: skip
        begin()
        desk.pass_s(290)
        end()
        desk.pass_s(299)
        assert desk.engine.state.phase == "ready" and not runs(tmp_path)
        desk.watch.note()


def test_a_command_that_fails_is_told_and_tried_again(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COMMAND, f"echo x >> {tmp_path / 'ran'}; echo not allowed >&2; exit 3")
    set_idle_minutes("command", 10)
    desk.pass_s(600)
    assert desk.watch.error is not None and desk.watch.error.params["why"] == "not allowed"
    desk.pass_s(1)
    assert desk.watch.left_s("command") == 599
    desk.pass_s(599)
    assert runs(tmp_path) == 2
    monkeypatch.setenv(COMMAND, "true")
    desk.pass_s(1)
    desk.pass_s(600)
    assert desk.watch.error is None


def test_a_command_that_takes_long_is_neither_ended_nor_begun_twice(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that saved files before it ended the machine was once killed after a minute, and the machine stayed on."""
    go_on = tmp_path / "go on"
    os.mkfifo(go_on)
    command = f"echo begun >> '{tmp_path / 'ran'}'; read word < '{go_on}'; echo $word >> '{tmp_path / 'ran'}'"
    monkeypatch.setenv(COMMAND, command)
    set_idle_minutes("command", 1)
    set_idle_minutes("unload", 5)
    desk.clock.now_s += 60
    desk.watch.poll()
    for _ in range(10):
        desk.clock.now_s += 60
        desk.watch.poll()
        assert desk.watch.running_command == command and desk.watch.left_s("command") is None
    assert desk.engine.state.phase == "empty", "the watch goes on meanwhile"
    desk.watch.note()
    desk.watch.poll()
    assert desk.watch.left_s("command") is None
    go_on.write_text("ended\n", "utf-8")
    wait_until(desk.has_ended)
    assert (tmp_path / "ran").read_text("utf-8").split() == ["begun", "ended"] and desk.watch.error is None
    assert desk.watch.left_s("command") == 60


def test_what_a_command_left_behind_keeps_nobody_waiting(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COMMAND, f"sleep 1000 & echo $! > {tmp_path / 'pid'}; exit 4")
    set_idle_minutes("command", 1)
    desk.pass_s(60)
    os.kill(int((tmp_path / "pid").read_text("utf-8")), signal.SIGKILL)
    assert desk.watch.error is not None and desk.watch.error.params["why"] == "exit 4"


def test_of_much_that_a_command_says_the_end_is_told(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMAND, "head -c 10000000 /dev/zero | tr '\\0' x; echo; echo 没有权限 >&2; exit 1")
    set_idle_minutes("command", 1)
    desk.pass_s(60)
    assert desk.watch.error is not None
    why = str(desk.watch.error.params["why"])
    assert len(why) == 300 and why.endswith("x\n没有权限")


def test_an_error_is_told_no_more_once_there_is_to_be_no_command(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMAND, "exit 1")
    set_idle_minutes("command", 1)
    desk.pass_s(60)
    assert desk.watch.error is not None
    set_idle_minutes("command", 0)
    desk.pass_s(1)
    assert desk.watch.error is None


def test_a_machine_that_was_suspended_begins_anew(desk: Desk, tmp_path: Path) -> None:
    """Of two hours asleep with seconds left, whoever opened the lid had those seconds to keep the machine."""
    set_idle_minutes("command", 10)
    desk.pass_s(595)
    idle_s = desk.watch.day.today.idle_s
    desk.boot_clock.now_s += 7200  # The clock of the engine stands still then, as the kernel's does.
    desk.pass_s(1)
    assert desk.watch.left_s("command") == 600
    # A process or a container that was stopped: its clock goes on.
    desk.pass_s(595)
    desk.boot_clock.now_s += 7200
    desk.pass_s(7200)
    assert not runs(tmp_path) and desk.watch.left_s("command") == 600
    assert desk.watch.day.today.idle_s == idle_s + 595, "the program did not run in that time"
    desk.boot_clock.now_s += 1
    desk.pass_s(600)
    assert runs(tmp_path) == 1


def test_an_empty_command_is_none(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMAND, " ")
    set_idle_minutes("command", 1)
    assert desk.watch.left_s("command") is None


def test_minutes_are_kept_within_bounds(desk: Desk) -> None:
    set_idle_minutes("unload", 10**9)
    assert idle_minutes("unload") == 7 * 24 * 60
    set_idle_minutes("unload", -5)
    assert idle_minutes("unload") == 0


def test_the_day_counts_over_starts_and_begins_anew_at_midnight(tmp_path: Path) -> None:
    days = [date(2026, 11, 30)]
    counted = IdleDay(tmp_path / "idle.json", lambda: days[0])
    counted.count(100, is_busy=False)
    counted.count(50, is_busy=True)
    counted.close()
    again = IdleDay(tmp_path / "idle.json", lambda: days[0])
    assert again.today == Day("2026-11-30", 150.0, 100.0)
    days[0] = date(2026, 12, 1)
    again.count(10, is_busy=False)
    assert again.today == Day("2026-12-01", 10.0, 10.0)
    assert IdleDay(tmp_path / "idle.json", lambda: days[0]).today == Day()


def test_the_log_says_how_long_a_day_was_idle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    days = [date(2026, 11, 30)]
    counted = IdleDay(tmp_path / "idle.json", lambda: days[0])
    counted.count(7200, is_busy=False)
    counted.count(1800, is_busy=True)
    days[0] = date(2026, 12, 1)
    with caplog.at_level("INFO"):
        counted.count(1, is_busy=False)
    assert "2026-11-30: the engine had nothing to do for 120 of 150 min" in caplog.text
