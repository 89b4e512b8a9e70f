"""Recurrent states go on from what a prompt shares with the last one, and never from anything else."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer

from core.engine.protocol import PromptStarted
from core.engine.thought import ThoughtRules
from core.engine.thought_formats import THINK
from core.worker.model.state_history import StateHistory, least_useful
from core.worker.prompt_reading import before_turn
from tests.support.scheduler_harness import FakeStates, FakeSteps, SchedulerHarness

Prompt = tuple[int, ...]


def history(num_slots: int = 1, num_snapshots: int = 2) -> tuple[StateHistory, list[str]]:
    """A history, and what it did to the rows."""
    done: list[str] = []
    copy: Callable[[int, int], None] = lambda source, target: done.append(f"{source} to {target}")  # noqa: E731
    return StateHistory(num_slots, num_snapshots, copy, lambda row: done.append(f"clear {row}")), done


def read(states: StateHistory, begin: int, end: int, slot: int = 0) -> None:
    states.begin(slot, begin)
    states.advance(slot, end - begin)


def test_a_state_goes_on_from_where_it_is_or_from_a_snapshot_below() -> None:
    states, done = history()
    read(states, 0, 64)
    read(states, 64, 100)
    assert [states.reusable_tokens(0, count) for count in (0, 63, 64, 99, 100, 500)] == [0, 0, 64, 64, 100, 100]
    # The first row of snapshots comes after the slot's own and the padding row.
    assert done == ["clear 0", "0 to 2"]
    read(states, 64, 90)
    assert done[2:] == ["2 to 0"]
    assert states.reusable_tokens(0, 100) == 90


def test_another_text_drops_what_was_kept_of_the_one_before() -> None:
    states, done = history()
    read(states, 0, 64)
    read(states, 64, 100)
    read(states, 0, 30)
    assert states.reusable_tokens(0, 100) == 30
    assert done[2:] == ["clear 0"]


def test_a_state_that_took_in_more_than_it_should_have_is_not_used() -> None:
    """A token that was decoded ahead and dropped."""
    states, _ = history()
    read(states, 0, 64)
    read(states, 64, 100)
    states.advance(0, 1)
    assert states.reusable_tokens(0, 100) == 64
    assert states.reusable_tokens(0, 101) == 101


def test_rows_are_taken_from_the_slot_that_has_most_of_them() -> None:
    states, done = history(num_slots=2, num_snapshots=3)
    for end in range(10, 50, 10):
        read(states, end - 10, end)
    assert states.reusable_tokens(0, 39) == 30
    read(states, 0, 10, slot=1)
    read(states, 10, 20, slot=1)
    assert done[-1] in ("1 to 3", "1 to 4", "1 to 5")
    assert states.reusable_tokens(1, 19) == 10
    # Two are left to the first slot.
    assert len({states.reusable_tokens(0, count) for count in range(40)}) == 3


@pytest.mark.parametrize(
    ("positions", "end", "given_up"),
    [([512, 1024, 1536], 2048, 512), ([512, 576, 1536], 2048, 512), ([1000, 1900, 1990], 2000, 1990), ([64], 128, 64)],
)
def test_the_snapshot_that_saves_least_is_given_up_first(positions: list[int], end: int, given_up: int) -> None:
    assert least_useful(positions, end) == given_up


@pytest.mark.parametrize(
    ("begin", "end", "cut"), [(0, 40, 40), (0, 100, 64), (64, 100, 100), (512, 1000, 960), (0, 80, 64), (0, 79, 79)]
)
def test_a_prompt_s_last_chunk_begins_a_little_before_the_answer_s_turn(begin: int, end: int, cut: int) -> None:
    assert before_turn(begin, end) == cut


def ask(harness: SchedulerHarness, request: int, prompt: Prompt, **more) -> tuple[str, int]:
    """The answer, and how many tokens of the prompt were not read anew."""
    harness.ask(request, prompt, **more)
    harness.run()
    (started,) = [one for one in harness.events if isinstance(one, PromptStarted) and one.request == request]
    return harness.text(request), started.reused_tokens


def tokens_of(text: str) -> Prompt:
    """What the steps sampled: a letter a token."""
    return tuple(67 + ord(letter) - ord("a") for letter in text)


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_regenerated_continued_and_edited_questions_go_on_from_snapshots(
    tokenizer: Tokenizer, runs_ahead: bool
) -> None:
    harness = SchedulerHarness(FakeStates(1, runs_ahead=runs_ahead), tokenizer, chunk=100)
    plain = SchedulerHarness(FakeSteps(1, context_tokens=512), tokenizer, chunk=100)
    first = tuple(range(100, 250))
    answer, reused = ask(harness, 1, first)
    assert (answer, reused) == (ask(plain, 1, first)[0], 0)
    # Made anew: all but what follows the snapshot near the end.
    assert ask(harness, 2, first) == (answer, 128)
    # Gone on with: nobody asked for more after the last token, so that it was not taken in.
    second = (*first, *tokens_of(answer), *range(100, 190))
    later, reused = ask(harness, 3, second)
    assert (later, reused) == (ask(plain, 3, second)[0], len(first) + 11)
    # The question edited: the state at the end of the answer before it is kept.
    edited = (*second[: len(first) + 12], *range(210, 300))
    changed, reused = ask(harness, 4, edited)
    assert (changed, reused) == (ask(plain, 4, edited)[0], len(first) + 11)


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_an_answer_s_last_token_is_taken_in_by_the_step_in_flight(tokenizer: Tokenizer, runs_ahead: bool) -> None:
    """What that step samples is dropped; the state stays good for the next prompt, which has the token."""
    plain = SchedulerHarness(FakeSteps(1, context_tokens=512), tokenizer, chunk=100)
    prompt = tuple(range(100, 250))
    said = tokens_of(ask(plain, 1, prompt)[0])
    end = next(index for index in range(2, 12) if said[index] not in said[:index])
    harness = SchedulerHarness(FakeStates(1, runs_ahead=runs_ahead), tokenizer, chunk=100, ends=[said[end]])
    ask(harness, 1, prompt)
    assert harness.end(1).reason == "end"
    further = (*prompt, *said[: end + 1], 70, 71, 72)
    answer, reused = ask(harness, 2, further)
    assert reused == len(prompt) + end + int(runs_ahead)
    plain_ends = SchedulerHarness(FakeSteps(1, context_tokens=512), tokenizer, chunk=100, ends=[said[end]])
    assert answer == ask(plain_ends, 2, further)[0]


@pytest.mark.parametrize("runs_ahead", [False, True])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 6])
def test_what_a_cancelled_answer_took_in_is_known(tokenizer: Tokenizer, runs_ahead: bool, num_steps: int) -> None:
    harness = SchedulerHarness(FakeStates(1, runs_ahead=runs_ahead), tokenizer, chunk=100)
    prompt = tuple(range(100, 250))
    harness.ask(1, prompt)
    for _ in range(num_steps):
        harness.scheduler.step()
    harness.scheduler.cancel(1)
    said = tokens_of(harness.text(1))
    plain = SchedulerHarness(FakeSteps(1, context_tokens=512), tokenizer, chunk=100)
    further = (*prompt, *said, 70, 71)
    answer, reused = ask(harness, 2, further)
    assert answer == ask(plain, 2, further)[0]
    assert reused >= min(100 * num_steps, 128)


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_a_thought_that_is_ended_goes_on_from_the_state_where_it_was(tokenizer: Tokenizer, runs_ahead: bool) -> None:
    rules = ThoughtRules(is_open=True, budget_tokens=5)
    steps = FakeStates(2, runs_ahead=runs_ahead), FakeSteps(2, context_tokens=512)
    texts = []
    for one in steps:
        harness = SchedulerHarness(one, tokenizer, chunk=64)
        harness.ask(2, tuple(range(70, 90)), max_new_tokens=50)
        texts.append((ask(harness, 1, tuple(range(100, 200)), thought=rules, max_new_tokens=40)[0], harness.text(2)))
    assert texts[0] == texts[1]
    assert THINK.closing in texts[0][0]


@pytest.mark.parametrize("keeps_states", [False, True])
def test_near_the_end_of_a_prompt_a_state_is_kept(tokenizer: Tokenizer, keeps_states: bool) -> None:
    """On the way where steps do so: one pass less, which of Qwen3.5-27B took 14 of the 61 ms of a prompt of 512."""
    steps = FakeStates(1, keeps_states=keeps_states)
    harness, plain = (SchedulerHarness(one, tokenizer, chunk=256) for one in (steps, FakeSteps(1, context_tokens=512)))
    first = tuple(range(100, 250))
    answer = ask(plain, 1, first)[0]
    assert ask(harness, 1, first) == (answer, 0)
    assert steps.num_passes == (1 if keeps_states else 2)
    # Made anew: what follows the state. What is left is too short for another one.
    assert ask(harness, 2, first) == (answer, 128)
    assert steps.num_passes == (2 if keeps_states else 3)


@pytest.mark.parametrize("keeps_states", [False, True])
@pytest.mark.parametrize("runs_ahead", [False, True])
def test_many_chats_over_few_slots_answer_as_with_a_cache(
    tokenizer: Tokenizer, runs_ahead: bool, keeps_states: bool
) -> None:
    draw = random.Random(0)
    harness = SchedulerHarness(FakeStates(3, runs_ahead=runs_ahead, keeps_states=keeps_states), tokenizer, chunk=64)
    plain = SchedulerHarness(FakeSteps(3, context_tokens=512), tokenizer, chunk=64)
    chats: list[Prompt] = [tuple(draw.choices(range(70, 300), k=draw.randrange(5, 200))) for _ in range(5)]
    for round_ in range(4):
        asked = draw.sample(range(5), 4)
        for one in (harness, plain):
            for chat in asked:
                one.ask(10 * round_ + chat, chats[chat], max_new_tokens=8 + chat)
        for _ in range(draw.randrange(3, 9)):
            harness.scheduler.step()
        harness.scheduler.cancel(10 * round_ + asked[0])
        for one in (harness, plain):
            one.run()
        for chat in asked:
            said = harness.text(10 * round_ + chat)
            assert plain.text(10 * round_ + chat).startswith(said)
            assert chat == asked[0] or said == plain.text(10 * round_ + chat)
            kept = chats[chat][: draw.randrange(1, len(chats[chat]))] if draw.random() < 0.3 else chats[chat]
            chats[chat] = (*kept, *tokens_of(said), *draw.choices(range(70, 300), k=20))[:400]
