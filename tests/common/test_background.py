"""Questions in threads, and what becomes of those that fail."""

from __future__ import annotations

import threading

import pytest

from core.common.background import MAX_TASKS, Task, TaskPool
from core.common.errors import DeckError, InputError
from core.hub.branches import Branch

WAIT_S = 60.0


def test_an_answer_is_there_when_the_question_is_done() -> None:
    go = threading.Event()
    task = Task(lambda _: go.wait(WAIT_S) and "answer")
    assert not task.is_done and not task.wait(0)
    go.set()
    assert task.wait(WAIT_S) and task.result == "answer" and task.error is None


def test_an_error_for_people_is_kept_as_it_is() -> None:
    error = InputError("repo_name", name="x")

    def ask(_: object) -> None:
        raise error

    task = Task(ask)
    assert task.wait(WAIT_S) and task.error is error


def test_any_other_error_becomes_a_sentence() -> None:
    task = Task(lambda _: 1 // 0)
    assert task.wait(WAIT_S) and isinstance(task.error, DeckError)
    assert "ZeroDivisionError" in str(task.error)


def test_a_question_is_asked_once_until_it_is_forgotten() -> None:
    asked: list[int] = []
    tasks = TaskPool()
    first = tasks.get("key", lambda _: asked.append(1))
    assert tasks.get("key", lambda _: asked.append(2)) is first
    assert first.wait(WAIT_S) and asked == [1]
    tasks.forget("key")
    assert tasks.get("key", lambda _: asked.append(3)).wait(WAIT_S) and asked == [1, 3]


def test_the_oldest_answers_are_dropped_when_there_are_many() -> None:
    tasks = TaskPool()
    first = tasks.get(0, lambda _: 0)
    for number in range(1, MAX_TASKS + 1):
        tasks.get(number, lambda _: 0)
    assert tasks.get(0, lambda _: 0) is not first
    assert tasks.get(MAX_TASKS, lambda _: 1).wait(WAIT_S) and tasks.get(MAX_TASKS, lambda _: 1).result == 0


def test_what_is_under_way_is_never_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be begun again beside itself by whoever asks next."""
    monkeypatch.setattr("core.common.background.MAX_TASKS", 4)
    tasks, go = TaskPool(), threading.Event()
    running = [tasks.get(("slow", number), lambda _: go.wait(WAIT_S)) for number in range(6)]
    for number in range(6):
        assert tasks.get(("quick", number), lambda _: 0).wait(WAIT_S)
    assert [tasks.get(("slow", number), lambda _: 1) for number in range(6)] == running
    go.set()
    assert all(task.wait(WAIT_S) for task in running)
    tasks.get("next", lambda _: 0)
    assert tasks.known(("slow", 0)) is None


def test_work_tells_how_far_it_is() -> None:
    task = Task(lambda report: report(3, 4))
    assert task.wait(WAIT_S) and task.progress == (3, 4)


def test_what_failed_is_done_anew_once_something_is_different() -> None:
    tasks = TaskPool()
    right = tasks.get("right", lambda _: (1, 2))
    wrong = tasks.get("wrong", lambda _: 1 // 0)
    partly = tasks.get("partly", lambda _: (Branch("main", error=DeckError("hub_gated")),))
    assert all(task.wait(WAIT_S) for task in (right, wrong, partly))
    tasks.forget_errors()
    assert tasks.known("right") is right
    assert tasks.known("wrong") is None and tasks.known("partly") is None
