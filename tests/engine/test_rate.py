"""The engine's tokens per second, on a clock that the tests turn."""

from __future__ import annotations

from core.engine.answer import Answer
from core.engine.protocol import AnswerStats, Finished, TextChunk
from core.engine.rate import TokenRate


class Clock:
    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def answer(request: int, num_tokens: int = 0) -> Answer:
    made = Answer(request, lambda number: None)
    write(made, num_tokens)
    return made


def write(one: Answer, num_tokens: int) -> None:
    one.apply(TextChunk(one.request, "word ", num_tokens))


def test_the_rate_adds_up_all_answers_that_run() -> None:
    clock, first, second = Clock(), answer(1), answer(2)
    rate = TokenRate(clock)
    assert rate.tokens_per_s([first, second]) == 0.0
    write(first, 30)
    write(second, 10)
    clock.now_s += 2.0
    assert rate.tokens_per_s([first, second]) == 20.0


def test_several_pages_that_ask_do_not_change_the_rate() -> None:
    clock, one = Clock(), answer(1)
    rate = TokenRate(clock)
    for num_tokens in range(0, 50, 5):
        write(one, num_tokens)
        rate.tokens_per_s([one])
        rate.tokens_per_s([one])
        clock.now_s += 0.5
    write(one, 50)
    assert rate.tokens_per_s([one]) == 10.0


def test_the_last_tokens_of_a_finished_answer_count() -> None:
    clock, one = Clock(), answer(1)
    rate = TokenRate(clock)
    rate.tokens_per_s([one])
    write(one, 8)
    one.apply(Finished(1, "end", AnswerStats(1, 0, 8, 0.0, 0.1, 0.9, 1)))
    clock.now_s += 1.0
    assert rate.tokens_per_s([]) == 8.0


def test_what_was_written_while_nobody_asked_is_no_burst() -> None:
    clock, one = Clock(), answer(1)
    rate = TokenRate(clock)
    rate.tokens_per_s([one])
    write(one, 9000)
    clock.now_s += 60.0
    assert rate.tokens_per_s([one]) == 0.0
    write(one, 9012)
    clock.now_s += 1.0
    assert rate.tokens_per_s([one]) == 12.0
