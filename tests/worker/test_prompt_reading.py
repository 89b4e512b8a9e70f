"""Which parts of which prompts a pass reads."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer

from core.engine.protocol import Finished
from core.engine.request_options import RequestOptions
from core.memory.plan import chunk_sizes
from core.worker.decode.logprobs import TokenLogprobs
from core.worker.decode.prompt_chunk import PromptChunk
from core.worker.decode.steps import PendingTokens
from core.worker.prompt_reading import SHARE_TOKENS, fill_pass, share_pass
from tests.support.scheduler_harness import FakeSteps, SchedulerHarness

SIZES = chunk_sizes(2048)


@pytest.mark.parametrize(
    ("num_tokens", "wanted"),
    [
        (9, 9),
        # Short passes take as long as the GPU needs for its weights.
        (130, 130),
        (256, 256),
        # A pass of 512 would be half empty; one of 256 and one of 16 are sooner done.
        (257, 256),
        # Of 256 and 256 there were no fewer.
        (440, 440),
        (530, 512),
        (700, 700),
        (1536, 1536),
        (1600, 1536),
        (2048, 2048),
    ],
)
def test_a_pass_is_full_or_nearly_so(num_tokens: int, wanted: int) -> None:
    assert fill_pass(num_tokens, SIZES) == wanted
    assert fill_pass(num_tokens, ()) == num_tokens


def test_those_who_wait_share_a_pass() -> None:
    # Four whole prompts are sooner answered than eight halves.
    assert share_pass([512] * 8, 2048, 16, SIZES) == [512] * 4
    # A long prompt takes what the others leave.
    assert share_pass([30000, 20, 100], 2048, 16, SIZES) == [1928, 20, 100]
    assert share_pass([30000, 30000, 20], 1024, 16, SIZES) == [512, 512]
    assert share_pass([30000], 512, 16, SIZES) == [512]
    # Where a pass reads one prompt at a time.
    assert share_pass([40, 70], 512, 1, SIZES) == [40]
    assert share_pass([700, 70], 64, 1, ()) == [64]
    # Beyond the most chunks of a pass.
    assert share_pass([30] * 20, 2048, 16, SIZES) == [30] * 16


class WatchedSteps(FakeSteps):
    """Reads up to four prompts in a pass of the sizes of a GPU, and keeps what each pass read."""

    max_chunks = 4
    pass_sizes: Sequence[int] = SIZES

    def __init__(self, num_slots: int, context_tokens: int = 4096) -> None:
        super().__init__(num_slots, context_tokens, runs_ahead=True)
        self.passes: list[dict[int, int]] = []

    def prefill_chunks(self, chunks: Sequence[PromptChunk]) -> PendingTokens | None:
        self.passes.append({chunk.slot: len(chunk.tokens) for chunk in chunks})
        return super().prefill_chunks(chunks)

    def score(
        self, slot: int, chunk: Sequence[int], begin: int, following: Sequence[int], num_top: int
    ) -> list[TokenLogprobs]:
        self.passes.append({slot: -len(chunk)})
        self.cached[slot][begin:] = chunk
        return [TokenLogprobs(token, -1.0, ()) for token in following]


def prompt(length: int, first: int = 5) -> tuple[int, ...]:
    return tuple(first + place % 80 for place in range(length))


def test_prompts_that_are_read_together_are_answered_as_each_by_itself(tokenizer: Tokenizer) -> None:
    lengths = (512, 700, 3, 90, 512, 1300)
    alone = []
    for request, length in enumerate(lengths):
        harness = SchedulerHarness(WatchedSteps(1), tokenizer, 2048)
        harness.ask(1, prompt(length, first=5 + 40 * request))
        harness.run()
        alone.append(harness.text(1))
    steps = WatchedSteps(len(lengths))
    harness = SchedulerHarness(steps, tokenizer, 2048)
    for request, length in enumerate(lengths):
        harness.ask(request, prompt(length, first=5 + 40 * request))
    harness.run()
    assert [harness.text(request) for request in range(len(lengths))] == alone
    assert max(map(len, steps.passes)) > 1 and max(sum(one.values()) for one in steps.passes) <= 2048
    read = [sum(one.get(slot, 0) for one in steps.passes) for slot in range(len(lengths))]
    assert sorted(read) == sorted(lengths)


def test_what_two_prompts_begin_with_is_read_for_one_of_them(tokenizer: Tokenizer) -> None:
    """Side by side in one pass both would have read it, each for itself."""
    steps = WatchedSteps(3)
    harness = SchedulerHarness(steps, tokenizer, 2048)
    harness.ask(1, (*prompt(600), 7, 8, 9))
    harness.ask(2, (*prompt(600), 10, 11))
    # The few tokens that every chat begins with are no reason to wait.
    harness.ask(3, (*prompt(30), *prompt(200, first=100)))
    harness.run()
    assert set(steps.passes[0]) == {0, 2}
    assert sum(sum(one.values()) for one in steps.passes) < 603 + 200 + 230


def test_an_answer_waits_for_no_more_of_others_prompts_than_a_share_each(tokenizer: Tokenizer) -> None:
    steps = WatchedSteps(3)
    harness = SchedulerHarness(steps, tokenizer, 2048)
    harness.ask(1, prompt(5), max_new_tokens=40)
    while not harness.text(1):
        harness.scheduler.step()
    harness.ask(2, prompt(4000))
    harness.scheduler.step()
    assert steps.passes[-1] == {1: SHARE_TOKENS}
    harness.ask(3, prompt(600, first=9))
    harness.scheduler.step()
    assert sum(steps.passes[-1].values()) <= 2 * SHARE_TOKENS and steps.passes[-1][2] == SHARE_TOKENS
    harness.run()
    assert isinstance(harness.end(2), Finished) and isinstance(harness.end(3), Finished)


def test_a_long_prompt_alone_is_read_in_the_largest_passes(tokenizer: Tokenizer) -> None:
    steps = WatchedSteps(2)
    harness = SchedulerHarness(steps, tokenizer, 2048)
    harness.ask(1, prompt(4000))
    harness.run()
    assert [one[0] for one in steps.passes] == [2048, 1952]


def test_a_prompt_whose_tokens_are_scored_has_its_turn_beside_a_long_one(tokenizer: Tokenizer) -> None:
    """Scores are made by steps of their own, which no other prompt may take for ever."""
    steps = WatchedSteps(3)
    harness = SchedulerHarness(steps, tokenizer, 512)
    harness.ask(1, prompt(3500))
    harness.ask(2, prompt(10, first=9), options=RequestOptions(logprobs=1, prompt_logprobs=True))
    harness.ask(3, prompt(3500, first=20))
    harness.run()
    scored = next(place for place, one in enumerate(steps.passes) if min(one.values()) < 0)
    assert scored <= 2


def test_long_passes_fill_the_tiles_of_their_products() -> None:
    assert all(size % 256 == 0 for size in SIZES if size > 256) and sorted(set(SIZES)) == SIZES
