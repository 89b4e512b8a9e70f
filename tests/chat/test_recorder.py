"""Answers are written down as they grow, with no page looking, whatever happens to the disk or the message."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from core.chat.recorder import SHUTDOWN_TIMEOUT_S, Recorder, Written
from core.chat.records import Thought
from core.chat.stats import error_of
from core.chat.store import ChatStore
from core.common.errors import EngineError
from core.engine.answer import Answer
from core.engine.protocol import AnswerStats, Failed, Finished, PromptStarted, Reason, TextChunk
from core.engine.thought import Parts, ThoughtRules, split_thought

WAIT_S = 60.0


class Engine:
    """Hands out answers and ends those that are cancelled, as the engine does."""

    def __init__(self) -> None:
        self.answers: dict[int, Answer] = {}
        self.cancelled: list[int] = []

    def answer(self) -> Answer:
        number = len(self.answers) + 1
        self.answers[number] = Answer(number, self.cancel)
        return self.answers[number]

    def cancel(self, request: int) -> None:
        self.cancelled.append(request)
        end(self.answers[request], "cancelled")


class WatchedStore(ChatStore):
    """Tells when something of an answer was written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, busy_s=0.05)
        self.grown = threading.Event()

    def grow_answer(self, message: int, text: str, thought: Thought | None = None) -> None:
        super().grow_answer(message, text, thought)
        self.grown.set()


def write(answer: Answer, text: str) -> None:
    answer.apply(PromptStarted(answer.request, 10, 0))
    answer.apply(TextChunk(answer.request, text, len(text.split())))


def end(answer: Answer, reason: Reason = "end") -> None:
    answer.apply(Finished(answer.request, reason, AnswerStats(10, 4, 21, 0.5, 0.25, 0.4, 7)))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WatchedStore]:
    store = WatchedStore(tmp_path / "chats.sqlite3")
    yield store
    store.close()


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def recorder(store: WatchedStore) -> Iterator[Recorder]:
    recorder = Recorder(store)
    yield recorder
    recorder.close()


def begin(store: ChatStore) -> tuple[int, int]:
    """A chat, and the answer that begins in it."""
    chat = store.create("instruct")
    return chat, store.begin_answer(chat, store.append_user(chat, "Hello?", None))


def test_an_answer_is_on_the_disk_while_it_grows(store: WatchedStore, recorder: Recorder, engine: Engine) -> None:
    chat, message = begin(store)
    answer = engine.answer()
    recorder.follow(message, answer, "model")
    write(answer, "Hello")
    assert store.grown.wait(WAIT_S)
    last = store.read(chat).messages[-1]
    assert (last.text, last.state) == ("Hello", "writing")
    assert recorder.answer(message) is answer and recorder.written(message) == Written("Hello")
    write(answer, " you!")
    end(answer)
    assert recorder.wait(message, WAIT_S)
    last = store.read(chat).messages[-1]
    assert (last.text, last.state) == ("Hello you!", "done")
    assert last.stats == {
        "model": "model", "reason": "end", "tokens": 21, "tokens_per_s": 50.0, "first_token_s": 0.75,
        "prompt_tokens": 10, "reused_tokens": 4, "seed": 7,
    }  # fmt: skip
    assert recorder.answer(message) is None and recorder.written(message) is None and recorder.problem(message) is None


def test_an_answer_that_is_stopped_or_fails_keeps_what_it_said(
    store: WatchedStore, recorder: Recorder, engine: Engine
) -> None:
    (chat, stopped), (other, failed) = begin(store), begin(store)
    first, second = engine.answer(), engine.answer()
    recorder.follow(stopped, first)
    recorder.follow(failed, second)
    write(first, "so far")
    write(second, "until it broke")
    recorder.stop(stopped)
    second.apply(Failed(second.request, EngineError("worker_died", how="SIGSEGV")))
    assert recorder.wait(stopped, WAIT_S) and recorder.wait(failed, WAIT_S)
    last, broken = store.read(chat).messages[-1], store.read(other).messages[-1]
    assert (last.text, last.state, last.stats["reason"]) == ("so far", "stopped", "cancelled")
    assert (broken.text, broken.state) == ("until it broke", "failed")
    assert "SIGSEGV" in str(error_of(broken.stats)) and error_of(last.stats) is None
    recorder.stop(stopped)
    assert engine.cancelled == [1]


def test_a_beginning_stays_before_the_answer(store: WatchedStore, recorder: Recorder, engine: Engine) -> None:
    chat, message = begin(store)
    answer = engine.answer()
    recorder.follow(message, answer, parts_of=lambda text, is_done: Parts(answer=f"Well, {text}"))
    write(answer, "hello")
    assert recorder.written(message) == Written("Well, hello")
    end(answer, "length")
    assert recorder.wait(message, WAIT_S)
    last = store.read(chat).messages[-1]
    assert (last.text, last.state, last.stats["reason"]) == ("Well, hello", "done", "length")


def test_an_answer_whose_message_is_gone_is_cancelled(store: WatchedStore, recorder: Recorder, engine: Engine) -> None:
    chat, message = begin(store)
    store.finish_answer(message, "written by another process", "done", {})
    answer = engine.answer()
    recorder.follow(message, answer)
    write(answer, "late")
    assert answer.wait(WAIT_S) and recorder.wait(message, WAIT_S)
    assert engine.cancelled == [1]
    assert store.read(chat).messages[-1].text == "written by another process"


def test_what_cannot_be_written_now_is_written_when_it_can(
    store: WatchedStore, recorder: Recorder, engine: Engine, tmp_path: Path
) -> None:
    chat, message = begin(store)
    other = sqlite3.connect(tmp_path / "chats.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    answer = engine.answer()
    recorder.follow(message, answer)
    write(answer, "kept in memory")
    end(answer)
    assert not recorder.wait(message, 0.5)
    problem = recorder.problem(message)
    assert problem is not None and problem.key == "chat_store_locked"
    other.execute("ROLLBACK")
    other.close()
    assert recorder.wait(message, WAIT_S)
    assert store.read(chat).messages[-1].text == "kept in memory"


def test_closing_writes_what_there_is(store: WatchedStore, engine: Engine) -> None:
    chat, message = begin(store)
    silent = Answer(9, lambda request: None)
    recorder = Recorder(store)
    recorder.follow(message, silent)
    write(silent, "never ended")
    recorder.close()
    last = store.read(chat).messages[-1]
    assert (last.text, last.state) == ("never ended", "stopped")


def joined(before: str, text: str, is_done: bool) -> Parts:
    return Parts(answer=before + text)


def thoughtful(text: str, is_done: bool) -> Parts:
    return split_thought(text, ThoughtRules())


def test_a_thought_is_written_apart_and_timed(
    store: WatchedStore, recorder: Recorder, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("core.chat.recorder.time.monotonic", lambda: float(next(clock)))
    chat, message = begin(store)
    answer = engine.answer()
    recorder.follow(message, answer, parts_of=thoughtful, thought_s=7.0)
    write(answer, "<think>\nhm")
    now = recorder.written(message)
    assert now is not None and now.is_thinking and now.text == "" and now.thought is not None
    assert now.thought.text == "hm" and now.thought.seconds is not None and now.thought.seconds >= 7
    write(answer, "\n</think>\n\nHi")
    now = recorder.written(message)
    assert now is not None and not now.is_thinking and now.text == "Hi"
    end(answer)
    assert recorder.wait(message, WAIT_S)
    last = store.read(chat).messages[-1]
    assert last.text == "Hi" and last.whole == "<think>\nhm\n</think>\n\nHi"
    assert last.thought == now.thought


def test_a_message_can_grow_on_at_once(store: WatchedStore, recorder: Recorder, engine: Engine) -> None:
    chat, message = begin(store)
    for number in range(3):
        before = store.read(chat).messages[-1].text
        answer = engine.answer()
        recorder.follow(message, answer, parts_of=partial(joined, before))
        write(answer, f"{number} ")
        end(answer)
        assert recorder.wait(message, WAIT_S)
        if number < 2:
            store.reopen_answer(message)
    assert store.read(chat).messages[-1].text == "0 1 2 "


def test_a_text_that_cannot_be_made_is_kept_as_it_came(store: WatchedStore, recorder: Recorder, engine: Engine) -> None:
    """The thread ended with the exception: the message stayed "writing", and its answer ran on with nobody."""
    chat, message = begin(store)
    answer = engine.answer()

    def fail(text: str, is_done: bool) -> Parts:
        raise RecursionError("a template's fault")

    recorder.follow(message, answer, parts_of=fail)
    write(answer, "Hello")
    assert store.grown.wait(WAIT_S) and recorder.written(message) == Written("Hello")
    end(answer)
    assert recorder.wait(message, WAIT_S)
    last = store.read(chat).messages[-1]
    assert (last.text, last.state) == ("Hello", "done")


def test_any_fault_of_the_disk_is_a_problem_that_may_pass(
    store: WatchedStore, recorder: Recorder, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.chat.recorder.RETRY_S", 0.02)
    chat, message = begin(store)
    answer, is_broken = engine.answer(), threading.Event()
    finish_answer, failed = store.finish_answer, threading.Event()

    def fail(*values: object) -> None:
        if not is_broken.is_set():
            failed.set()
            raise MemoryError
        finish_answer(*values)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "finish_answer", fail)
    recorder.follow(message, answer)
    write(answer, "Hello")
    end(answer)
    assert failed.wait(WAIT_S)
    assert not recorder.wait(message, 0.05)
    assert "MemoryError" in str(recorder.problem(message))
    is_broken.set()
    assert recorder.wait(message, WAIT_S)
    assert store.read(chat).messages[-1].state == "done"


def test_closing_gives_all_answers_together_one_time_limit(
    store: WatchedStore, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited_s: list[float] = []

    class Slow:
        """Stands in for the thread of an answer whose disk does not respond."""

        def start(self) -> None: ...

        def join(self, timeout_s: float) -> None:
            waited_s.append(timeout_s)
            clock["s"] += timeout_s

    clock = {"s": 100.0}
    monkeypatch.setattr("core.chat.recorder.time.monotonic", lambda: clock["s"])
    recorder = Recorder(store)
    for _ in range(3):
        _, message = begin(store)
        answer = engine.answer()
        monkeypatch.setattr("core.chat.recorder.threading.Thread", lambda **_: Slow())
        recorder.follow(message, answer)
        monkeypatch.undo()
        monkeypatch.setattr("core.chat.recorder.time.monotonic", lambda: clock["s"])
    recorder.close()
    assert waited_s == [SHUTDOWN_TIMEOUT_S, 0.0, 0.0] and engine.cancelled == [1, 2, 3]


def test_an_answer_for_which_there_is_no_thread_is_not_waited_for(
    store: WatchedStore, recorder: Recorder, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    _, message = begin(store)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            recorder.follow(message, engine.answer())
    assert recorder.answer(message) is None
