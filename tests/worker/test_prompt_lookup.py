"""What a text says about its next tokens, and when it is asked."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer

from core.engine.protocol import Generate
from core.engine.request_options import Grammar, RequestOptions
from core.engine.sampling_params import Sampling
from core.engine.thought import ThoughtRules
from core.engine.thought_formats import THINK
from core.worker.decode.steps import PendingTokens
from core.worker.prompt_lookup import INDEXED_TOKENS, PromptLookup, may_be_proposed
from tests.support.scheduler_harness import FakeSteps, SchedulerHarness

STEPS = 2.0


def written(text: list[int], num_prompt: int) -> PromptLookup:
    """A lookup that has followed a text token by token from its prompt on."""
    lookup = PromptLookup()
    for end in range(num_prompt, len(text) + 1):
        lookup.follow(text[:end])
    return lookup


def test_what_followed_the_last_tokens_before_is_proposed() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 3, 4, 5]
    assert written(text, 9).propose(text, 4) == [6, 7, 8, 9]
    # Of several places the last one.
    text = [1, 2, 3, 50, 1, 2, 3, 60, 70, 1, 2, 3]
    assert written(text, 9).propose(text, 2) == [60, 70]
    assert written([1, 2, 3, 4], 4).propose([1, 2, 3, 4], 2) == []
    assert written([1], 1).propose([1], 2) == []


def test_a_text_that_repeats_itself_is_expected_to_go_on_so() -> None:
    text = [9, 1, 2, 1, 2, 1, 2]
    assert written(text, 2).propose(text, 5) == [1, 2, 1, 2, 1]


def test_nothing_is_proposed_before_it_would_have_been_right_for_a_while() -> None:
    prompt = list(range(40))
    lookup = written([*prompt, 10, 11, 12, 13], 40)
    assert not lookup.is_ready(STEPS)
    # The token after the first three was looked up in vain; from then on each was right.
    assert written([*prompt, *range(10, 17)], 40).is_ready(STEPS)
    assert not written([*prompt, *range(10, 17), 3], 40).is_ready(STEPS)
    # Where it takes as long as many steps, there is no credit for it.
    assert not written([*prompt, *range(10, 17)], 40).is_ready(8.0)


@pytest.mark.parametrize("steps", [1.5, 2.0, 2.4])
def test_proposals_that_always_fail_cost_little(steps: float) -> None:
    """Texts that are copied for just as long as it takes to be believed: each proposal then loses."""
    source, lookup, chance = list(range(300)), PromptLookup(), random.Random(1)
    text, lost = source[:], 0.0
    lookup.follow(text)
    while len(text) < 1300:
        begin = chance.randrange(290)
        for token in source[begin : begin + 8]:
            if lookup.is_ready(steps):
                lookup.judge(1, steps)
                lost += steps - 1.0
                break
            text.append(token)
            lookup.follow(text)
    assert 0.0 < lost <= 0.03 * 1000


def test_proposals_that_hold_are_made_again_at_once() -> None:
    prompt = list(range(40))
    lookup, text = written([*prompt, *range(10, 17)], 40), [*prompt, *range(10, 17)]
    lookup.judge(8, STEPS)
    # One token differed; a single one that is right is then enough.
    text += [99, 3, 4, 5]
    lookup.follow(text)
    assert not lookup.is_ready(STEPS)
    text.append(6)
    lookup.follow(text)
    assert lookup.is_ready(STEPS)


def test_a_long_text_is_indexed_part_by_part() -> None:
    chance = random.Random(2)
    text = [chance.randrange(5000) for _ in range(3 * INDEXED_TOKENS)]
    lookup, early, late = PromptLookup(), text[10:20], text[-20:-10]
    lookup.follow(text)
    assert lookup.propose([*text, *early[:3]], 4) == early[3:7]
    assert lookup.propose([*text, *late[:3]], 4) == []
    for _ in range(3):
        text.append(1)
        lookup.follow(text)
    assert lookup.propose([*text, *late[:3]], 4) == late[3:7]


@pytest.mark.parametrize(
    ("changes", "options", "wanted"),
    [
        ({"temperature": 1.0, "top_k": 5}, RequestOptions(logit_bias=((3, 1.0),), ignore_eos=True), True),
        ({"repetition_penalty": 1.1}, RequestOptions(), False),
        ({"presence_penalty": 0.1}, RequestOptions(), False),
        ({"frequency_penalty": 0.1}, RequestOptions(), False),
        ({"mirostat": 2}, RequestOptions(), False),
        ({}, RequestOptions(logprobs=0), False),
        ({}, RequestOptions(min_tokens=3), False),
        ({}, RequestOptions(grammar=Grammar("regex", "a*")), False),
    ],
    ids=str,
)
def test_what_depends_on_more_than_the_text_is_written_token_by_token(
    changes: dict[str, float], options: RequestOptions, wanted: bool
) -> None:
    assert may_be_proposed(Generate(1, "a", Sampling(**changes), options=options)) is wanted


class Copying(FakeSteps):
    """Steps that mostly repeat what stands a few tokens before, of which `num_rows` are verified at once."""

    def __init__(self, num_rows: int, runs_ahead: bool, num_slots: int = 2, period: int = 12) -> None:
        super().__init__(num_slots, 512, runs_ahead)
        self.max_verified, self._period = num_rows, period
        self.num_steps = self.num_verified = 0

    def decode(self, slots: list[int]) -> PendingTokens:  # type: ignore[override]
        self.num_steps += 1
        return super().decode(slots)

    def verify(self, slot: int, tokens: list[int], begin: int) -> PendingTokens:  # type: ignore[override]
        self.num_steps += 1
        self.num_verified += 1
        return super().verify(slot, tokens, begin)

    def _sample(self, slot: int) -> int | None:
        cached = self.cached[slot]
        # Each 37th token is another one.
        self._last[slot] = 70 + len(cached) % 20 if len(cached) % 37 == 0 else cached[-self._period]
        return self._last[slot]


def answer(steps: Copying, tokenizer: Tokenizer, length: int, others: int = 0) -> SchedulerHarness:
    harness = SchedulerHarness(steps, tokenizer, 64)
    for request in range(1 + others):
        harness.ask(request, tuple(range(67, 67 + 20)), max_new_tokens=length)
    harness.run()
    return harness


@pytest.mark.parametrize("runs_ahead", [True, False])
@pytest.mark.parametrize("length", [1, 5, 199, 300])
def test_an_answer_that_copies_is_the_same_in_far_fewer_steps(
    tokenizer: Tokenizer, length: int, runs_ahead: bool
) -> None:
    plain, steps = Copying(0, runs_ahead), Copying(8, runs_ahead)
    wanted, got = answer(plain, tokenizer, length), answer(steps, tokenizer, length)
    assert got.text(0) == wanted.text(0) and got.end(0).stats.num_tokens == length
    assert steps.cached[0][: 20 + length - 1] == plain.cached[0][: 20 + length - 1]
    assert plain.num_verified == 0
    if length >= 199:
        assert steps.num_steps < 0.5 * plain.num_steps


def test_an_answer_that_copies_ends_at_its_context(tokenizer: Tokenizer) -> None:
    plain, steps = Copying(0, True), Copying(8, True)
    wanted, got = answer(plain, tokenizer, 5000), answer(steps, tokenizer, 5000)
    assert got.end(0).reason == wanted.end(0).reason == "context"
    assert got.text(0) == wanted.text(0) and steps.num_verified


def test_answers_beside_one_another_are_written_token_by_token(tokenizer: Tokenizer) -> None:
    steps = Copying(8, True)
    harness = answer(steps, tokenizer, 150, others=1)
    assert harness.text(0) and steps.num_verified == 0


@pytest.mark.parametrize("cut", [lambda text: text[60:64], lambda text: text[100:103]])
def test_a_stop_string_ends_it_where_it_would_have(tokenizer: Tokenizer, cut: Callable[[str], str]) -> None:
    text = answer(Copying(0, True), tokenizer, 199).text(0)
    ends = []
    for num_rows in (0, 8):
        harness = SchedulerHarness(Copying(num_rows, True), tokenizer, 64)
        harness.ask(0, tuple(range(67, 67 + 20)), max_new_tokens=199, stop=(cut(text),))
        harness.run()
        ends.append((harness.text(0), harness.end(0).reason, harness.end(0).stats.num_tokens))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("budget_tokens", [60, 61, 63])
def test_a_thoughts_budget_ends_it_among_verified_tokens(tokenizer: Tokenizer, budget_tokens: int) -> None:
    """What came after it is dropped; the answer that goes on once counted its first token as the proposal's."""
    ends = []
    for num_rows in (0, 8):
        steps = Copying(num_rows, True)
        harness = SchedulerHarness(steps, tokenizer, 64)
        rules = ThoughtRules(THINK, is_open=True, budget_tokens=budget_tokens)
        harness.ask(0, tuple(range(67, 67 + 20)), max_new_tokens=250, thought=rules)
        while not harness.scheduler.is_idle:
            harness.scheduler.step()
            for slot in harness.scheduler._slots:
                assert slot.request is None or not slot.request.num_proposed or slot.request.num_in_flight
        assert bool(steps.num_verified) == bool(num_rows)
        ends.append((harness.text(0), harness.end(0).stats.num_tokens))
    assert ends[0] == ends[1] and THINK.marks[1] in ends[0][0]
