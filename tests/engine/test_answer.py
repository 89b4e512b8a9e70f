"""An answer as a job: it grows, it ends once, and whoever waits for it is woken."""

from __future__ import annotations

import pickle
import threading

import pytest

from core.common.errors import EngineError
from core.engine.answer import Answer
from core.engine.protocol import (
    AnswerStats,
    Event,
    Failed,
    Finished,
    Generate,
    Paused,
    PromptStarted,
    Reason,
    TextChunk,
)
from core.engine.sampling_params import Sampling

STATS = AnswerStats(prompt_tokens=5, reused_tokens=1, num_tokens=3, queued_s=0.0, prefill_s=0.5, decode_s=2.0, seed=9)
LONG_S = 60.0


class Cancelled:
    """Whom an answer asks to be cancelled."""

    def __init__(self) -> None:
        self.requests: list[int] = []

    def __call__(self, request: int) -> None:
        self.requests.append(request)


@pytest.fixture
def engine() -> Cancelled:
    return Cancelled()


@pytest.fixture
def answer(engine: Cancelled) -> Answer:
    return Answer(4, engine)


def waiting(wait, *arguments) -> tuple[threading.Thread, list]:
    """A thread that waits, and where its result comes."""
    results: list = []
    thread = threading.Thread(target=lambda: results.append(wait(*arguments)), daemon=True)
    thread.start()
    return thread, results


def test_an_answer_goes_through_its_phases(answer: Answer) -> None:
    assert (answer.phase, answer.is_running, answer.text) == ("queued", True, "")
    answer.apply(PromptStarted(4, prompt_tokens=5, reused_tokens=1))
    assert (answer.phase, answer.prompt_tokens) == ("reading", 5)
    answer.apply(TextChunk(4, "Par", 1))
    answer.apply(TextChunk(4, "is", 2))
    assert (answer.phase, answer.text, answer.num_tokens) == ("writing", "Paris", 2)
    answer.apply(Finished(4, "end", STATS))
    assert (answer.phase, answer.reason, answer.stats, answer.error) == ("done", "end", STATS, None)
    assert (answer.text, answer.is_running) == ("Paris", False)


def test_what_was_written_stays_when_it_fails(answer: Answer) -> None:
    answer.apply(PromptStarted(4, 5, 0))
    answer.apply(TextChunk(4, "Par", 1))
    error = EngineError("worker_killed")
    answer.apply(Failed(4, error))
    assert (answer.text, answer.reason, answer.error, answer.stats) == ("Par", "failed", error, None)


def test_it_may_fail_before_it_began(answer: Answer) -> None:
    answer.apply(Failed(4, EngineError("prompt_empty")))
    assert (answer.phase, answer.reason, answer.text) == ("done", "failed", "")


@pytest.mark.parametrize(
    "late",
    [
        PromptStarted(4, 9, 9),
        TextChunk(4, "more", 9),
        Finished(4, "length", STATS),
        Failed(4, EngineError("engine_fault", why="x")),
    ],
)
@pytest.mark.parametrize("reason", ["end", "cancelled"])
def test_what_comes_after_the_end_is_ignored(answer: Answer, late: Event, reason: Reason) -> None:
    answer.apply(TextChunk(4, "Hi", 1))
    answer.apply(Finished(4, reason, STATS))
    answer.apply(late)
    assert (answer.text, answer.num_tokens, answer.phase) == ("Hi", 1, "done")
    assert (answer.reason, answer.error, answer.stats) == (reason, None, STATS)


def test_cancelling_asks_the_engine_and_the_end_comes_from_there(answer: Answer, engine: Cancelled) -> None:
    answer.cancel()
    assert engine.requests == [4]
    assert answer.is_running
    answer.apply(Finished(4, "cancelled", STATS))
    answer.cancel()
    assert engine.requests == [4]


def test_waiting_ends_with_the_answer(answer: Answer) -> None:
    thread, results = waiting(answer.wait, LONG_S)
    answer.apply(TextChunk(4, "x", 1))
    answer.apply(Finished(4, "end", STATS))
    thread.join(LONG_S)
    assert results == [True]
    assert answer.wait()


def test_waiting_ends_with_a_failure_as_well(answer: Answer) -> None:
    thread, results = waiting(answer.wait, LONG_S)
    answer.apply(Failed(4, EngineError("worker_killed")))
    thread.join(LONG_S)
    assert results == [True]


def test_waiting_gives_up_in_time(answer: Answer) -> None:
    assert not answer.wait(0.0)
    assert not answer.wait_for_text(0, 0.0)


def test_waiting_for_text_ends_with_enough_of_it(answer: Answer) -> None:
    thread, results = waiting(answer.wait_for_text, 3, LONG_S)
    for token in "abc":
        answer.apply(TextChunk(4, token, 1))
    assert not answer.wait_for_text(3, 0.0)
    answer.apply(TextChunk(4, "d", 4))
    thread.join(LONG_S)
    assert results == [True]


def test_waiting_for_more_text_than_comes_ends_with_the_answer(answer: Answer) -> None:
    thread, results = waiting(answer.wait_for_text, 100, LONG_S)
    answer.apply(Finished(4, "end", STATS))
    thread.join(LONG_S)
    assert results == [True]


def test_the_rate_is_that_of_the_tokens_after_the_first() -> None:
    assert STATS.decode_tokens_per_s == 1.0
    for num_tokens, decode_s in ((0, 1.0), (1, 1.0), (5, 0.0)):
        stats = AnswerStats(5, 0, num_tokens, 0.0, 0.0, decode_s, 0)
        assert stats.decode_tokens_per_s == 0.0


@pytest.mark.parametrize(
    "message",
    [
        Generate(1, "你好", Sampling(stop=("\n",), seed=3)),
        TextChunk(1, "😀", 2),
        Finished(1, "stop", STATS),
    ],
)
def test_a_message_crosses_a_pipe_unchanged(message: Event | Generate) -> None:
    assert pickle.loads(pickle.dumps(message)) == message


def test_a_listener_is_called_at_once_and_at_every_change_until_the_end(answer: Answer) -> None:
    answer.apply(PromptStarted(4, prompt_tokens=5, reused_tokens=1))
    seen: list[tuple[str, str]] = []
    answer.add_listener(lambda: seen.append((answer.phase, answer.text)))
    answer.apply(TextChunk(4, "Par", 1))
    answer.apply(Finished(4, "end", STATS))
    answer.apply(TextChunk(4, "is", 2))
    assert seen == [("reading", ""), ("writing", "Par"), ("done", "Par")]


def test_an_answer_that_waits_for_room_says_so_until_it_goes_on_or_ends() -> None:
    answer = Answer(4, lambda request: None)
    answer.apply(PromptStarted(4, prompt_tokens=5, reused_tokens=1))
    for is_paused in (True, False, True):
        answer.apply(Paused(4, is_paused))
        assert answer.is_paused == is_paused
    answer.apply(Finished(4, "cancelled", STATS))
    assert not answer.is_paused
