"""Draws that wait for a grammar, beside chats without one, over pages that seldom suffice."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from core.common.errors import EngineError
from core.engine.protocol import Generate
from core.engine.sampling_params import Sampling
from core.worker.decode.draw_rules import DrawRules
from core.worker.decode.prompt_chunk import PromptChunk
from core.worker.decode.steps import PendingTokens
from tests.support.scheduler_harness import FakePages, SchedulerHarness

LETTERS = "abcdefghijklmnopqrstuvwxyz"
FIRST = 67


class Alphabet:
    """A grammar of `length` letters in their order."""

    error: EngineError | None = None

    def __init__(self, length: int) -> None:
        self.is_active, self._length, self.num_accepted = True, length, 0

    @property
    def next_token(self) -> int:
        return FIRST + self.num_accepted % len(LETTERS)

    def allowed(self) -> None:
        raise AssertionError("the fake draws by next_token")

    def accept(self, token: int) -> None:
        assert token == self.next_token, "drawn by what was known one token before"
        self.num_accepted += 1

    @property
    def is_over(self) -> bool:
        return self.num_accepted >= self._length


class LatePages(FakePages):
    """The same whose slots with a grammar are drawn once the tokens before are accepted. No other step may be enqueued
    until then."""

    def __init__(self, num_pages: int, page_tokens: int, max_chunks: int) -> None:
        super().__init__(3, 64, True, page_tokens=page_tokens, num_pages=num_pages)
        self.max_chunks = max_chunks
        self._grammars: dict[int, Alphabet] = {}
        self._undrawn: LateTokens | None = None

    def reset_slot(self, slot: int, sampling: Sampling, seed: int, tokens: Sequence[int], rules: object = None) -> None:
        assert isinstance(rules, DrawRules)
        self._grammars.pop(slot, None)
        if isinstance(rules.constraint, Alphabet):
            self._grammars[slot] = rules.constraint

    def prefill_chunks(self, chunks: Sequence[PromptChunk]) -> PendingTokens | None:
        assert self._undrawn is None
        pending = super().prefill_chunks(chunks)
        if pending is None:
            return None
        # What comes before an answer's first token is known.
        late = LateTokens(self, [chunk.slot for chunk in chunks if chunk.is_last], pending)
        late.draw_rest()
        return late

    def decode(self, slots: Sequence[int]) -> PendingTokens:
        assert self._undrawn is None
        return LateTokens(self, slots, super().decode(slots))

    def begin(self, tokens: LateTokens, slots: Sequence[int]) -> dict[int, Alphabet]:
        grammars = {row: self._grammars[slot] for row, slot in enumerate(slots) if slot in self._grammars}
        self._undrawn = tokens if grammars else None
        return grammars

    def draw(self, tokens: LateTokens, slots: Sequence[int], grammars: dict[int, Alphabet]) -> dict[int, int]:
        assert self._undrawn in (tokens, None)
        self._undrawn = None
        drawn = {}
        for row, grammar in grammars.items():
            if self._grammars.get(slots[row]) is grammar:
                drawn[row] = self._last[slots[row]] = grammar.next_token
        return drawn


class LateTokens:
    def __init__(self, steps: LatePages, slots: Sequence[int], plain: PendingTokens) -> None:
        self._steps, self._slots, self._plain = steps, list(slots), plain
        self._drawn: dict[int, int] | None = None
        self._grammars = steps.begin(self, slots)

    def draw_rest(self) -> None:
        if self._drawn is None:
            self._drawn = self._steps.draw(self, self._slots, self._grammars)

    def wait(self) -> list[int | None]:
        self.draw_rest()
        assert self._drawn is not None
        return [self._drawn.get(row, token) for row, token in enumerate(self._plain.wait())]

    def logprobs(self) -> list[None]:
        return [None] * len(self._slots)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    max_chunks=st.integers(1, 3),
    page_tokens=st.sampled_from([4, 16, 32]),
    extra=st.integers(0, 12),
)
def test_grammars_hold_whoever_waits_for_pages_or_is_cancelled(
    tokenizer: Tokenizer, seed: int, max_chunks: int, page_tokens: int, extra: int
) -> None:
    chance = random.Random(seed)
    steps = LatePages(64 // page_tokens + extra, page_tokens, max_chunks)
    harness = SchedulerHarness(steps, tokenizer, chunk=chance.choice([5, 16, 64]))
    wanted: dict[int, str] = {}
    for request in range(10):
        prompt = tuple(chance.randrange(40, 44) for _ in range(chance.choice([1, 4, 16, 32, 40])))
        if chance.random() < 0.6:
            length, most = chance.choice([1, 2, 30]), chance.choice([1, 40])
            count = min(length, most, steps.context_tokens - len(prompt))
            wanted[request] = (LETTERS * 2)[:count]
            command = Generate(request, prompt, Sampling(temperature=0.0, max_new_tokens=most))
            harness.scheduler.submit(command, Alphabet(length))
        else:
            harness.ask(request, prompt, max_new_tokens=chance.choice([1, 40]))
        for _ in range(chance.randrange(16)):
            harness.scheduler.step()
        if chance.random() < 0.2:
            harness.scheduler.cancel(chance.randrange(request + 1))
    harness.run()
    for request, text in wanted.items():
        if harness.end(request).reason == "cancelled":
            assert text.startswith(harness.text(request))
        else:
            assert harness.text(request) == text
    assert harness.scheduler._room._pool.num_available == steps.num_pages  # type: ignore[attr-defined]
