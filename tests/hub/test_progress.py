"""Speed, time, tries: what people see of a download's progress, and how long failures are waited for."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.hub.cancellation import Cancelled, CancelToken
from core.hub.progress import WINDOW_S, FileProgress, Speed
from core.hub.retry import (
    MAX_RETRY_AFTER_S,
    RetryPolicy,
    TransferLimits,
    TransientError,
    parse_retry_after,
    waiting_notice,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_speed_is_that_of_the_last_seconds() -> None:
    clock = Clock()
    speed = Speed(clock)
    assert speed.bytes_s() == 0.0
    for _ in range(100):
        clock.now += 0.1
        speed.count(1000)
    assert speed.bytes_s() == pytest.approx(10_000, rel=0.06)
    for _ in range(100):
        clock.now += 0.1
        speed.count(100)
    assert speed.bytes_s() == pytest.approx(1000, rel=0.06)
    clock.now += 3 * WINDOW_S
    assert speed.bytes_s() == 0.0


@given(st.lists(st.integers(-5, 300)))
def test_what_was_shown_is_never_taken_back(steps: list[int]) -> None:
    progress, shown = FileProgress("x", 200), [0]
    for step in steps:
        progress.reached(step)
        shown.append(progress.state.done_bytes)
    assert shown == sorted(shown) and 0 <= shown[-1] <= 200
    progress.finished()
    assert (progress.state.done_bytes, progress.state.phase) == (200, "done")


def waits(limits: TransferLimits, failures: list[float | None], progress_at: int = -1) -> list[float]:
    found: list[float] = []
    retries = RetryPolicy(limits, limits.tries, lambda error, seconds: found.append(seconds))
    for number, asked in enumerate(failures):
        if number == progress_at:
            retries.record_progress()
        retries.record_failure(TransientError("hub_busy", host="x").after(asked))
    return found


def test_waits_become_longer_and_are_as_long_as_the_server_asks() -> None:
    limits = TransferLimits(tries=9, first_wait_s=1, max_wait_s=10)
    assert waits(limits, [None] * 6) == [1, 2, 4, 8, 10, 10]
    assert waits(limits, [None, 33, None]) == [1, 33, 4]
    assert waits(limits, [None] * 4, progress_at=2) == [1, 2, 0, 1]


def test_tries_end_after_so_many_failures_without_progress() -> None:
    with pytest.raises(TransientError):
        waits(TransferLimits(tries=3), [0, 0, 0])
    assert waits(TransferLimits(tries=3), [0, 0, 0, 0], progress_at=2) == [0, 0, 0, 0]


def test_retry_after_is_seconds_or_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert parse_retry_after("12") == 12
    assert 50 < (parse_retry_after(later) or 0) <= 60
    assert parse_retry_after("99999999999999999999") == MAX_RETRY_AFTER_S
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


@given(st.one_of(st.none(), st.text()))
def test_any_retry_after_is_harmless(text: str | None) -> None:
    found = parse_retry_after(text)
    assert found is None or 0 <= found <= MAX_RETRY_AFTER_S


@pytest.mark.parametrize(
    ("error", "key"),
    [
        (TransientError("hub_busy", host="h"), "retry_busy"),
        (TransientError("hub_cut", host="h"), "retry_cut"),
        (TransientError("hub_failed", host="h", status=503), "retry_failed"),
        (TransientError("hub_unreachable", host="h", why="no route"), "retry_failed"),
    ],
)
def test_a_wait_is_said_with_its_seconds(error: TransientError, key: str) -> None:
    notice = waiting_notice(error, 1.2)
    assert (notice.key, notice.params["seconds"]) == (key, 2)
    assert "{" not in notice.sentence("en") + notice.sentence("zh")


def test_a_cancellation_is_heard_by_those_who_wait_and_read() -> None:
    cancel, hung_up = CancelToken(), threading.Event()
    reading = threading.Event()

    def read() -> None:
        with cancel.on_cancel(hung_up.set):
            reading.set()
            hung_up.wait(10)

    thread = threading.Thread(target=read)
    thread.start()
    assert reading.wait(10)
    cancel.request("pause")
    assert hung_up.wait(10)
    thread.join()
    with pytest.raises(Cancelled):
        cancel.wait(60)
    with pytest.raises(Cancelled), cancel.on_cancel(hung_up.set):
        raise AssertionError("nothing begins after a cancellation")
    cancel.request("cancel")
    cancel.request("pause")
    assert cancel.reason == "cancel"
