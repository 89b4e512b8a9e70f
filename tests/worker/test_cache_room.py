"""Chats that share beginnings and pages answer what each would by itself, whatever waits, stops and goes on."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from core.engine.protocol import Failed, Finished, Paused, PromptStarted
from tests.support.scheduler_harness import FakePagedStates, FakePages, FakeStates, FakeSteps, SchedulerHarness

SYSTEM = tuple(range(40, 90))


class StepClock:
    """In the place of the module `time`."""

    now_s = 1.0

    def perf_counter(self) -> float:
        return self.now_s


def alone(tokenizer: Tokenizer, prompt: tuple[int, ...], max_new_tokens: int, context_tokens: int = 128) -> str:
    harness = SchedulerHarness(FakeSteps(1, context_tokens), tokenizer)
    harness.ask(0, prompt, max_new_tokens=max_new_tokens)
    harness.run()
    return harness.text(0)


@pytest.mark.parametrize("kind", [FakeSteps, FakePages])
@pytest.mark.parametrize("runs_ahead", [False, True])
def test_a_system_text_is_read_once_for_all_chats(
    tokenizer: Tokenizer, kind: type[FakeSteps], runs_ahead: bool
) -> None:
    """Also by those that ask at the same moment: each reads on from where another one has come."""
    steps = kind(4, 256, runs_ahead)
    harness = SchedulerHarness(steps, tokenizer, chunk=16)
    prompts = [(*SYSTEM, 100 + number, 7) for number in range(4)]
    for request, prompt in enumerate(prompts):
        harness.ask(request, prompt)
    harness.run()
    assert [harness.text(request) for request in range(4)] == [alone(tokenizer, prompt, 12) for prompt in prompts]
    # Pages are shared whole: what does not fill one is read by each.
    apart = len(SYSTEM) % 16 + 2 if kind is FakePages else 16
    assert steps.num_prefilled <= len(SYSTEM) + 4 * apart
    reused = sorted(harness.end(request).stats.reused_tokens for request in range(4))
    assert reused[-1] >= 48 and sum(reused) == sum(map(len, prompts)) - steps.num_prefilled


@pytest.mark.parametrize("kind", [FakeSteps, FakePages])
def test_a_chat_that_ended_gives_its_beginning_to_another_and_still_goes_on(
    tokenizer: Tokenizer, kind: type[FakeSteps]
) -> None:
    steps = kind(2, 256)
    harness = SchedulerHarness(steps, tokenizer, chunk=64)
    first = (*SYSTEM, *range(150, 250))
    for request, prompt in enumerate([first, (*SYSTEM, 9, 9, 9), (*first, 5)]):
        harness.ask(request, prompt, max_new_tokens=3)
        harness.run()
        assert harness.text(request) == alone(tokenizer, prompt, 3, 256)
    # A page is shared whole, and two tokens of a further one are not worth a copy of it.
    shared = 48 if kind is FakePages else len(SYSTEM)
    assert [harness.end(request).stats.reused_tokens for request in range(3)] == [0, shared, len(first)]
    assert steps.num_copied == (0 if kind is FakePages else len(SYSTEM))


def test_too_little_memory_for_all_stops_the_last_who_loses_nothing(tokenizer: Tokenizer) -> None:
    """Three chats of a whole context each, over pages for one and a half: each writes to its end, in their order."""
    for runs_ahead in (False, True):
        steps = FakePages(3, 96, runs_ahead, page_tokens=4, num_pages=36)
        harness = SchedulerHarness(steps, tokenizer, chunk=8)
        prompts = [(number, *SYSTEM[:10]) for number in range(3)]
        for request, prompt in enumerate(prompts):
            harness.ask(request, prompt, max_new_tokens=100)
        was_paused = False
        while not harness.scheduler.is_idle:
            harness.scheduler.step()
            was_paused |= any(slot.is_paused for slot in harness.scheduler._slots)
        assert was_paused
        told = [(event.request, event.is_paused) for event in harness.events if isinstance(event, Paused)]
        assert {request for request, _ in told} == {1, 2}
        for request in (1, 2):
            mine = [is_paused for one, is_paused in told if one == request]
            assert mine == [place % 2 == 0 for place in range(len(mine))] and not mine[-1]
        for request, prompt in enumerate(prompts):
            assert harness.text(request) == alone(tokenizer, prompt, 100, 96)
            assert harness.end(request).reason == "context"
        ends = [event.request for event in harness.events if isinstance(event, Finished)]
        assert ends == [0, 1, 2]
        assert len([event for event in harness.events if isinstance(event, PromptStarted)]) == 3
        assert harness.scheduler._room._pool.num_available == 36  # type: ignore[attr-defined]


def test_one_that_stopped_does_not_take_its_pages_from_who_needed_them(tokenizer: Tokenizer) -> None:
    """Its pages were enough for itself, so it went on at once and was stopped again, for ever."""
    steps = FakePages(2, 64, page_tokens=16, num_pages=4)
    harness = SchedulerHarness(steps, tokenizer)
    harness.ask(0, tuple(range(1, 16)), max_new_tokens=45)
    harness.scheduler.step()
    harness.ask(1, (9, 8, 7), max_new_tokens=13)
    harness.run()
    assert harness.text(0) == alone(tokenizer, tuple(range(1, 16)), 45, 64)
    assert harness.text(1) == alone(tokenizer, (9, 8, 7), 13, 64)


def test_nobody_waits_for_pages_where_every_chat_can_be_full(tokenizer: Tokenizer) -> None:
    steps = FakePages(3, 96, page_tokens=16)
    harness = SchedulerHarness(steps, tokenizer, chunk=8)
    for request in range(3):
        harness.ask(request, (request, *SYSTEM[:10]), max_new_tokens=100)
    while not harness.scheduler.is_idle:
        harness.scheduler.step()
        assert not any(slot.is_paused for slot in harness.scheduler._slots)
        assert len(harness.scheduler._waiting) == 0
    assert [harness.end(request).reason for request in range(3)] == ["context"] * 3


def test_a_request_that_has_no_room_lets_nobody_past(tokenizer: Tokenizer) -> None:
    """Short ones that fit beside what runs would keep a long one waiting for ever."""
    steps = FakePages(3, 64, page_tokens=16, num_pages=5)
    harness = SchedulerHarness(steps, tokenizer)
    harness.ask(1, tuple(range(1, 40)), max_new_tokens=9)
    harness.scheduler.step()
    harness.ask(2, tuple(range(60, 110)), max_new_tokens=9)
    harness.ask(3, (7,), max_new_tokens=1)
    harness.run()
    assert [event.request for event in harness.events if isinstance(event, PromptStarted)] == [1, 2, 3]


@pytest.mark.parametrize("max_chunks", [1, 2])
def test_a_prompt_that_has_its_pages_is_read_though_another_waits_for_pages(
    tokenizer: Tokenizer, max_chunks: int
) -> None:
    """The one that waited stood first each time, and the pass was its own: the other came after a third one's end."""
    steps = FakePages(3, 160, page_tokens=4, num_pages=42)
    steps.max_chunks = max_chunks
    harness = SchedulerHarness(steps, tokenizer, chunk=2)
    prompts, counts = [(1, 2, 3), tuple(range(10, 90)), tuple(range(90, 160))], (150, 2, 2)
    for request, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        harness.ask(request, prompt, max_new_tokens=count)
        harness.scheduler.step()
    harness.run()
    assert [event.request for event in harness.events if isinstance(event, Finished)] == [1, 2, 0]
    assert {event.request for event in harness.events if isinstance(event, Paused)} == {2}
    for request, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        assert harness.text(request) == alone(tokenizer, prompt, count, 160)


def test_one_whose_beginning_is_being_read_for_another_begins_beside_it(tokenizer: Tokenizer) -> None:
    """It had no room when both were asked, and was not looked at again before the other one's end, though by then it
    lacked no more than a page."""
    steps = FakePages(2, 128, page_tokens=16, num_pages=10)
    harness = SchedulerHarness(steps, tokenizer, chunk=32)
    prompts = [(*range(40, 120), 100 + request) for request in range(2)]
    for request, prompt in enumerate(prompts):
        harness.ask(request, prompt, max_new_tokens=25)
    harness.run()
    told = [(type(event), event.request) for event in harness.events if isinstance(event, PromptStarted | Finished)]
    assert told.index((PromptStarted, 1)) < told.index((Finished, 0))
    for request, prompt in enumerate(prompts):
        assert harness.text(request) == alone(tokenizer, prompt, 25)


def test_what_an_answer_waits_for_room_slows_nothing_that_is_told_of_it(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below an answer of 7 tokens a second stood half a token, as it had waited for most of a minute."""
    clock = StepClock()
    for part in ("scheduler", "answering", "admission"):
        monkeypatch.setattr(f"core.worker.{part}.time", clock)
    harness = SchedulerHarness(FakePages(2, 64, page_tokens=4, num_pages=16), tokenizer)
    for request in (0, 1):
        harness.ask(request, (request, 5, 6), max_new_tokens=100)
    while not harness.scheduler.is_idle:
        harness.scheduler.step()
        clock.now_s += 1.0
    assert [event.is_paused for event in harness.events if isinstance(event, Paused)] == [True, False]
    for request in (0, 1):
        stats = harness.end(request).stats
        # In some steps it finds no room, and the second one reads anew what its pages lost.
        assert stats.num_tokens == 61 and 60.0 <= stats.decode_s <= 62.0 + 6 * request
    assert clock.now_s > 85.0


def test_one_that_waits_for_memory_can_be_cancelled(tokenizer: Tokenizer) -> None:
    steps = FakePages(2, 64, page_tokens=4, num_pages=16)
    harness = SchedulerHarness(steps, tokenizer)
    for request in (0, 1):
        harness.ask(request, (request, 5, 6), max_new_tokens=100)
    for _ in range(60):
        if any(slot.is_paused for slot in harness.scheduler._slots):
            break
        harness.scheduler.step()
    assert [slot.is_paused for slot in harness.scheduler._slots] == [False, True]
    harness.scheduler.cancel(1)
    assert harness.end(1).reason == "cancelled" and harness.text(1)
    harness.run()
    assert harness.text(0) == alone(tokenizer, (0, 5, 6), 100, 64)


def test_what_was_no_number_is_read_anew_by_the_next_chat(tokenizer: Tokenizer) -> None:
    steps = FakePages(2, nan_at=60)
    harness = SchedulerHarness(steps, tokenizer)
    harness.ask(1, SYSTEM, max_new_tokens=100)
    harness.run()
    (failed,) = [event for event in harness.events if isinstance(event, Failed)]
    assert failed.error.key == "not_a_number"
    harness.ask(2, SYSTEM, max_new_tokens=2)
    harness.run()
    assert harness.end(2).stats.reused_tokens == 0


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    runs_ahead=st.booleans(),
    page_tokens=st.sampled_from([4, 16, 32]),
    extra=st.integers(0, 12),
)
def test_any_mix_of_chats_answers_as_each_by_itself(
    tokenizer: Tokenizer, seed: int, runs_ahead: bool, page_tokens: int, extra: int
) -> None:
    """Chats that begin alike, go on, are asked again and are cancelled, over pages that seldom suffice."""
    chance = random.Random(seed)
    steps = FakePages(3, 64, runs_ahead, page_tokens=page_tokens, num_pages=64 // page_tokens + extra)
    harness = SchedulerHarness(steps, tokenizer, chunk=chance.choice([5, 8, 64]))
    asked: dict[int, tuple[tuple[int, ...], int]] = {}
    for request in range(12):
        begin = SYSTEM[: chance.choice([0, 3, 20, 33])]
        prompt = (*begin, *(chance.randrange(40, 44) for _ in range(chance.randrange(1, 28))))
        asked[request] = prompt, chance.choice([1, 4, 60])
        harness.ask(request, prompt, client=chance.choice(["", "a"]), max_new_tokens=asked[request][1])
        for _ in range(chance.randrange(20)):
            harness.scheduler.step()
        if chance.random() < 0.2:
            harness.scheduler.cancel(chance.randrange(request + 1))
    harness.run()
    for request, (prompt, count) in asked.items():
        wanted = alone(tokenizer, prompt, count, 64)
        end = harness.end(request)
        if end.reason == "cancelled":
            assert wanted.startswith(harness.text(request))
        else:
            assert harness.text(request) == wanted
    assert harness.scheduler._room._pool.num_available == steps.num_pages  # type: ignore[attr-defined]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0, 4, 16, 32]), st.integers(0, 12))
def test_recurrent_states_go_on_from_where_pages_and_a_state_are_both_kept(
    tokenizer: Tokenizer, seed: int, page_tokens: int, extra: int
) -> None:
    """Between a request's admission and its first chunk another one may take the snapshot that it was to go on from:
    its states then began empty in the middle of a text."""
    chance = random.Random(seed)
    keeps_states = chance.choice([False, True])
    steps: FakeSteps = FakeStates(2, 256, keeps_states=keeps_states)
    if page_tokens:
        steps = FakePagedStates(2, 256, page_tokens, 256 // page_tokens + extra, keeps_states)
    harness = SchedulerHarness(steps, tokenizer, chunk=chance.choice([8, 64, 256]))
    texts: list[tuple[int, ...]] = [SYSTEM, (*SYSTEM, *range(150, 230)), (9,)]
    for request in range(8):
        prompt = (*chance.choice(texts), *(chance.randrange(40, 44) for _ in range(chance.randrange(1, 9))))
        texts.append(prompt)
        count = chance.choice([1, 5, 90])
        harness.ask(request, prompt, max_new_tokens=count)
        for _ in range(chance.randrange(30)):
            harness.scheduler.step()
    harness.run()
    for event in [event for event in harness.events if isinstance(event, Finished)]:
        prompt = texts[3 + event.request]
        assert harness.text(event.request) == alone(tokenizer, prompt, event.stats.num_tokens, 256)


def test_a_chat_with_states_goes_on_over_pages_without_being_read_again(tokenizer: Tokenizer) -> None:
    steps = FakePagedStates(2, 512)
    harness = SchedulerHarness(steps, tokenizer, chunk=64)
    first = (*SYSTEM, *range(150, 300))
    for request, prompt in enumerate([first, (*first, 7, 7, 7), first]):
        harness.ask(request, prompt, max_new_tokens=3)
        harness.run()
    reused = [harness.end(request).stats.reused_tokens for request in range(3)]
    # The states of a prompt are kept a few tokens before its end.
    assert reused[0] == 0 and reused[1] > 0 and reused[2] >= 128
