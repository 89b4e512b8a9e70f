"""A thousand random operations on chats over pages that seldom suffice: no page is lost, none is read that holds
another text or what another adapter made of it, and each chat says what it says by itself."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from core.engine.protocol import Failed, Finished, Generate, PromptScored, TextChunk
from core.engine.request_options import RequestOptions
from core.engine.sampling_params import Sampling
from core.engine.thought import THINK, ThoughtRules
from core.worker.adapter_reader import ReadAdapter
from core.worker.cache_room import PageRoom
from core.worker.decode.logprobs import TokenLogprobs
from tests.support.scheduler_harness import FakePages, FakeSteps, FakeTokens, SchedulerHarness

CONTEXT, SLOTS, NUM_OPERATIONS = 96, 3, 1000
# What copies the text before it: proposals are then often right.
PERIOD = 7
SYSTEM = tuple(range(40, 90))
# A mark is told from a token by its size.
MARK = 1000


@dataclass(frozen=True)
class FakeAdapter:
    """An adapter of which only is known that it is not another one."""

    mark: int
    weight: float = 1.0

    @property
    def version(self) -> int:
        return self.mark


def scores(chunk: Sequence[int], following: Sequence[int]) -> list[TokenLogprobs]:
    return [TokenLogprobs(after, -float(token)) for token, after in zip(chunk, following, strict=True)]


class CopyingRows(FakeSteps):
    """Each token repeats the one PERIOD before it, but some; one request by itself."""

    def score(self, slot: int, chunk: Sequence[int], begin: int, following: Sequence[int], num_top: int) -> Any:
        self.prefill(slot, chunk, begin, False)
        return scores(chunk, following)

    def _sample(self, slot: int) -> int | None:
        return copied_token(self, slot)


def copied_token(steps: FakeSteps, slot: int) -> int | None:
    token, cached = FakeSteps._sample(steps, slot), steps.cached[slot]
    if token is not None and len(cached) > PERIOD and len(cached) % 23:
        token = steps._last[slot] = 67 + (cached[-PERIOD] - 67) % 26
    return token


class MarkedPages(FakePages):
    """Pages whose columns know for which adapter they were written. Several tokens of one slot can be verified."""

    def __init__(self, runs_ahead: bool, page_tokens: int, num_pages: int, nan_at: int | None) -> None:
        super().__init__(SLOTS, CONTEXT, runs_ahead, nan_at, page_tokens, num_pages)
        self.marks = [0] * SLOTS
        self.max_verified, self.num_verified = 6, 0

    def score(self, slot: int, chunk: Sequence[int], begin: int, following: Sequence[int], num_top: int) -> Any:
        self.prefill(slot, chunk, begin, False)
        return scores(chunk, following)

    def verify(self, slot: int, tokens: Sequence[int], begin: int) -> Any:
        assert begin == self._positions[slot] and self.num_in_flight == 0
        for place, token in enumerate(tokens, begin):
            self._write(slot, place, token)
        drawn = list[int | None]()
        for place, following in enumerate([*tokens[1:], None], begin):
            self._positions[slot] = place + 1
            drawn.append(self._sample(slot))
            if drawn[-1] is None or drawn[-1] != following:
                break
        self.num_verified += len(drawn)
        return FakeTokens(self, drawn)

    def _write(self, slot: int, place: int, token: int) -> None:
        super()._write(slot, place, token + MARK * self.marks[slot])

    def _sample(self, slot: int) -> int | None:
        held = [column for page in self._tables[slot] for column in self._memory[page]][: self._positions[slot]]
        assert {column // MARK for column in held} == {self.marks[slot]}, "another adapter's keys and values"
        self.cached[slot] = [column % MARK for column in held]
        return copied_token(self, slot)


class Marks:
    """In the place of the reader of adapters: each has a place, and a slot's mark is told to the steps."""

    def __init__(self, steps: MarkedPages) -> None:
        self._steps = steps

    def has_place(self, adapter: FakeAdapter, used: object) -> bool:
        return True

    def hold(self, adapter: FakeAdapter, used: object) -> int:
        return adapter.mark

    def set_slot(self, slot: int, place: int | None, weight: float) -> None:
        self._steps.marks[slot] = place or 0


def random_request(chance: random.Random, request: int) -> Generate:
    begin = SYSTEM[: chance.choice([0, 3, 20, 33, 50])]
    prompt = (*begin, *(chance.randrange(40, 44) for _ in range(chance.randrange(1, 40))))
    sampling = Sampling(
        temperature=0.0,
        max_new_tokens=chance.choice([1, 4, 30, 90]),
        stop=chance.choice([(), (), ("kk",), ("ab", "za")]),
        repetition_penalty=chance.choice([1.0, 1.0, 1.1]),
    )
    thought = ThoughtRules(THINK, is_open=True, budget_tokens=9) if chance.random() < 0.15 else None
    options = RequestOptions(logprobs=0, prompt_logprobs=True) if chance.random() < 0.15 else RequestOptions()
    return Generate(request, prompt, sampling, client=chance.choice(["", "a", "b"]), thought=thought, options=options)


def said(harness: SchedulerHarness, request: int) -> tuple[object, ...]:
    """All that was told of a request: its text, how many tokens, how it ended, its prompt's scores."""
    mine = [event for event in harness.events if event.request == request]  # type: ignore[union-attr]
    counts = [event.num_tokens for event in mine if isinstance(event, TextChunk)]
    assert counts == sorted(counts)
    prompt = [token.chosen.token for event in mine if isinstance(event, PromptScored) for token in event.tokens]
    (end,) = [event for event in mine if isinstance(event, Finished | Failed)]
    ends = (
        (end.reason, end.stop, end.stats.num_tokens, end.stats.prompt_tokens)
        if isinstance(end, Finished)
        else ("failed",)
    )
    return harness.text(request), prompt, ends


def by_itself(tokenizer: Tokenizer, command: Generate, nan_at: int | None) -> tuple[object, ...]:
    harness = SchedulerHarness(CopyingRows(1, CONTEXT, nan_at=nan_at), tokenizer)
    harness.scheduler.submit(command)
    harness.run()
    return said(harness, command.request)


def require_whole(room: PageRoom) -> None:
    """Every page is free, idle, or read or written by those whose holding says so."""
    pool, holdings = room._pool, list(room._holdings.values())
    own = [page for holding in holdings for page in holding.own]
    read = {block.page for holding in holdings for block in holding.blocks}
    assert sorted([*own, *read, *(block.page for block in pool._idle), *pool._free]) == list(range(pool.num_pages))


def test_a_prompt_alone_is_scored_though_a_thought_is_ended_after_it(tokenizer: Tokenizer) -> None:
    """What was thought and its end were read as a part of the prompt, and scored as one."""
    rules, options = (
        ThoughtRules(THINK, is_open=True, budget_tokens=9),
        RequestOptions(logprobs=0, prompt_logprobs=True),
    )
    command = Generate(0, SYSTEM, Sampling(temperature=0.0, max_new_tokens=40), thought=rules, options=options)
    text, scored, _ = by_itself(tokenizer, command, None)
    assert scored == list(SYSTEM) and THINK.marks[1] in str(text)


@settings(max_examples=16, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    runs_ahead=st.booleans(),
    page_tokens=st.sampled_from([4, 16, 32]),
    extra=st.integers(0, 12),
    nan_at=st.sampled_from([None, None, 61]),
)
def test_no_page_is_lost_and_no_chat_says_anything_else(
    tokenizer: Tokenizer, seed: int, runs_ahead: bool, page_tokens: int, extra: int, nan_at: int | None
) -> None:
    chance = random.Random(seed)
    steps = MarkedPages(runs_ahead, page_tokens, CONTEXT // page_tokens + extra, nan_at)
    steps.max_chunks = chance.choice([1, 3])
    harness = SchedulerHarness(steps, tokenizer, chance.choice([5, 16, 64]), adapters=cast(Any, Marks(steps)))
    scheduler, room = harness.scheduler, cast(PageRoom, harness.scheduler._room)
    asked: dict[int, Generate] = {}
    # Proposals are made where one is alone.
    rate = chance.choice([0.01, 0.06])
    for _ in range(NUM_OPERATIONS):
        draw = chance.random()
        if draw < rate:
            command = random_request(chance, len(asked))
            asked[command.request] = command
            adapter = FakeAdapter(chance.choice([0, 0, 1, 2]))
            scheduler.submit(command, adapter=cast(ReadAdapter, adapter) if adapter.mark else None)
        elif draw < 1.3 * rate and asked:
            scheduler.cancel(chance.choice(sorted(asked)))
        else:
            scheduler.step()
        require_whole(room)
    harness.run()
    require_whole(room)
    assert room._pool.num_available == steps.num_pages and not room._holdings
    for request, command in asked.items():
        (*got, ends), (*wanted, wanted_ends) = said(harness, request), by_itself(tokenizer, command, nan_at)
        if cast(tuple[str, ...], ends)[0] == "cancelled":
            assert cast(str, wanted[0]).startswith(cast(str, got[0]))
        else:
            assert (got, ends) == (wanted, wanted_ends)


@pytest.mark.parametrize("runs_ahead", [True, False])
def test_an_answer_that_copies_is_verified_while_another_waits_for_room(tokenizer: Tokenizer, runs_ahead: bool) -> None:
    """Nothing was proposed then: the chat that waits was counted as one at work."""
    steps = MarkedPages(runs_ahead, 4, CONTEXT // 4 + 6, None)
    harness = SchedulerHarness(steps, tokenizer, 64)
    sampling = Sampling(temperature=0.0, max_new_tokens=CONTEXT)
    commands = [Generate(request, (*SYSTEM[:20], 60 + request), sampling) for request in range(2)]
    for command in commands:
        harness.scheduler.submit(command)
    first, second = harness.scheduler._slots[:2]
    num_beside = 0
    while not harness.scheduler.is_idle:
        before, was_paused = steps.num_verified, second.is_paused
        harness.scheduler.step()
        num_beside += steps.num_verified - before if was_paused and first.request is not None else 0
    assert num_beside > 10
    assert [said(harness, one.request) for one in commands] == [by_itself(tokenizer, one, None) for one in commands]
