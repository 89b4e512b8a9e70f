"""Questions in threads, and what becomes of those that fail."""

from __future__ import annotations

import threading

import pytest

from core.common.background import MAX_LOOKUPS, Lookup, Lookups
from core.common.errors import DeckError, InputError
from core.hub.branches import Branch

WAIT_S = 30


def test_an_answer_is_there_when_the_question_is_done() -> None:
    go = threading.Event()
    lookup = Lookup(lambda _: go.wait(WAIT_S) and "answer")
    assert not lookup.is_done and not lookup.wait(0)
    go.set()
    assert lookup.wait(WAIT_S) and lookup.result == "answer" and lookup.error is None


def test_an_error_for_people_is_kept_as_it_is() -> None:
    error = InputError("repo_name", name="x")

    def ask(_: object) -> None:
        raise error

    lookup = Lookup(ask)
    assert lookup.wait(WAIT_S) and lookup.error is error


def test_any_other_error_becomes_a_sentence() -> None:
    lookup = Lookup(lambda _: 1 // 0)
    assert lookup.wait(WAIT_S) and isinstance(lookup.error, DeckError)
    assert "ZeroDivisionError" in str(lookup.error)


def test_a_question_is_asked_once_until_it_is_forgotten() -> None:
    asked: list[int] = []
    lookups = Lookups()
    first = lookups.get("key", lambda _: asked.append(1))
    assert lookups.get("key", lambda _: asked.append(2)) is first
    assert first.wait(WAIT_S) and asked == [1]
    lookups.forget("key")
    assert lookups.get("key", lambda _: asked.append(3)).wait(WAIT_S) and asked == [1, 3]


def test_the_oldest_answers_are_dropped_when_there_are_many() -> None:
    lookups = Lookups()
    first = lookups.get(0, lambda _: 0)
    for number in range(1, MAX_LOOKUPS + 1):
        lookups.get(number, lambda _: 0)
    assert lookups.get(0, lambda _: 0) is not first
    assert lookups.get(MAX_LOOKUPS, lambda _: 1).wait(WAIT_S) and lookups.get(MAX_LOOKUPS, lambda _: 1).result == 0


def test_what_is_under_way_is_never_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be begun again beside itself by whoever asks next."""
    monkeypatch.setattr("core.common.background.MAX_LOOKUPS", 4)
    lookups, go = Lookups(), threading.Event()
    running = [lookups.get(("slow", number), lambda _: go.wait(WAIT_S)) for number in range(6)]
    for number in range(6):
        assert lookups.get(("quick", number), lambda _: 0).wait(WAIT_S)
    assert [lookups.get(("slow", number), lambda _: 1) for number in range(6)] == running
    go.set()
    assert all(lookup.wait(WAIT_S) for lookup in running)
    lookups.get("next", lambda _: 0)
    assert lookups.known(("slow", 0)) is None


def test_work_tells_how_far_it_is() -> None:
    lookup = Lookup(lambda report: report(3, 4))
    assert lookup.wait(WAIT_S) and lookup.progress == (3, 4)


def test_what_failed_is_done_anew_once_something_is_different() -> None:
    lookups = Lookups()
    right = lookups.get("right", lambda _: (1, 2))
    wrong = lookups.get("wrong", lambda _: 1 // 0)
    partly = lookups.get("partly", lambda _: (Branch("main", error=DeckError("hub_gated")),))
    assert all(lookup.wait(WAIT_S) for lookup in (right, wrong, partly))
    lookups.forget_errors()
    assert lookups.known("right") is right
    assert lookups.known("wrong") is None and lookups.known("partly") is None
