"""A scheduler with everything that it emitted, over any steps; and steps without a model."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tokenizers import Tokenizer

from core.engine.protocol import Event, Finished, Generate, TextChunk
from core.engine.request_options import PLAIN, RequestOptions
from core.engine.sampling_params import Sampling
from core.engine.thought import ThoughtRules
from core.memory.layer_state import DELTA_TOKENS, num_snapshots
from core.worker.adapter_reader import AdapterReader
from core.worker.decode.logprobs import TokenLogprobs
from core.worker.decode.prompt_chunk import PromptChunk
from core.worker.decode.steps import PendingTokens, Steps
from core.worker.model.state_history import StateHistory
from core.worker.scheduler import Scheduler

PROMPT = "What is the capital of France?"


class SchedulerHarness:
    def __init__(
        self,
        steps: Steps,
        tokenizer: Tokenizer,
        chunk: int = 8,
        ends: Collection[int] = (),
        adapters: AdapterReader | None = None,
    ) -> None:
        self.events: list[Event] = []
        self.tokenizer = tokenizer
        self.adapters = adapters
        self.scheduler = Scheduler(steps, tokenizer, frozenset(ends), chunk, self.events.append, adapters)

    def ask(
        self,
        request: int,
        prompt: str | tuple[int, ...] = PROMPT,
        client: str = "",
        thought: ThoughtRules | None = None,
        options: RequestOptions = PLAIN,
        **sampling,
    ) -> None:
        settings = Sampling(**{"temperature": 0.0, "max_new_tokens": 12, **sampling})
        command = Generate(request, prompt, settings, client=client, thought=thought, options=options)
        use, reader = options.adapter, self.adapters
        self.scheduler.submit(command, adapter=reader.read(use) if use is not None and reader is not None else None)

    def run(self) -> None:
        for _ in range(2000):
            if self.scheduler.is_idle:
                return
            self.scheduler.step()
        raise AssertionError("the scheduler never came to an end")

    def text(self, request: int) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextChunk) and event.request == request)

    def end(self, request: int) -> Finished:
        (end,) = [event for event in self.events if isinstance(event, Finished) and event.request == request]
        return end


class FakeTokens:
    """Tokens that count as read once `wait` was called."""

    def __init__(self, steps: FakeSteps, tokens: list[int | None]) -> None:
        self._steps, self._tokens = steps, tokens
        steps.num_in_flight += 1

    def draw_rest(self) -> None:
        pass

    def wait(self) -> list[int | None]:
        self._steps.num_in_flight -= 1
        return self._tokens

    def logprobs(self) -> list[None]:
        return [None] * len(self._tokens)


class FakeSteps:
    """Steps whose next token depends on all tokens that the slot's cache holds, as a model's does. Logits are NaN with
    `nan_at` of them."""

    vocabulary = 384
    page_tokens = num_pages = 0
    max_chunks, max_verified, verify_steps = 1, 0, 2.0
    pass_sizes: Sequence[int] = ()

    def __init__(
        self, num_slots: int = 3, context_tokens: int = 128, runs_ahead: bool = False, nan_at: int | None = None
    ) -> None:
        self.runs_ahead, self.num_slots, self.context_tokens = runs_ahead, num_slots, context_tokens
        self.has_states = self.keeps_states = False
        self.cached: list[list[int]] = [[] for _ in range(num_slots)]
        self.num_in_flight = self.num_prefilled = self.num_copied = self._kept_at = 0
        self._last = [0] * num_slots
        self._nan_at = nan_at

    def reset_slot(self, slot: int, sampling: Sampling, seed: int, tokens: Sequence[int], rules: object = None) -> None:
        pass

    def reusable_tokens(self, slot: int, num_tokens: int) -> int:
        return num_tokens

    def set_pages(self, slot: int, pages: Sequence[int]) -> None:
        raise NotImplementedError("no pages")

    def copy_tokens(self, source: int, target: int, num_tokens: int) -> None:
        assert source != target and num_tokens <= len(self.cached[source])
        self.cached[target] = self.cached[source][:num_tokens]
        self.num_copied += num_tokens

    def score(
        self, slot: int, chunk: Sequence[int], begin: int, following: Sequence[int], num_top: int
    ) -> list[TokenLogprobs]:
        raise NotImplementedError("no logits")

    def prefill(self, slot: int, chunk: Sequence[int], begin: int, is_last: bool) -> PendingTokens | None:
        assert len(chunk) > 0 and begin <= len(self.cached[slot])
        self.cached[slot][begin:] = chunk
        self.num_prefilled += len(chunk)
        return FakeTokens(self, [self._sample(slot)]) if is_last else None

    def prefill_chunks(self, chunks: Sequence[PromptChunk]) -> PendingTokens | None:
        assert 0 < len(chunks) <= self.max_chunks
        read = [self.prefill_chunk(chunk) for chunk in chunks]
        tokens = [token for pending in read if pending is not None for token in pending.wait()]
        return FakeTokens(self, tokens) if tokens else None

    def prefill_chunk(self, chunk: PromptChunk) -> PendingTokens | None:
        self._kept_at = chunk.kept_at
        if chunk.kept_at:
            assert self.keeps_states and (chunk.kept_at - chunk.begin) % DELTA_TOKENS == 0
            assert chunk.begin < chunk.kept_at < chunk.begin + len(chunk.tokens)
        return self.prefill(chunk.slot, chunk.tokens, chunk.begin, chunk.is_last)

    def verify(self, slot: int, tokens: Sequence[int], begin: int) -> PendingTokens:
        assert len(tokens) <= self.max_verified and self.num_in_flight == 0
        assert tokens[0] == self._last[slot] and begin == len(self.cached[slot])
        drawn = list[int | None]()
        for place, token in enumerate(tokens):
            self.cached[slot].append(token)
            drawn.append(self._sample(slot))
            if tokens[place + 1 : place + 2] != [drawn[-1]]:
                break
        return FakeTokens(self, drawn)

    def decode(self, slots: Sequence[int]) -> PendingTokens:
        assert list(slots) == sorted(set(slots))
        for slot in slots:
            self.cached[slot].append(self._last[slot])
        return FakeTokens(self, [self._sample(slot) for slot in slots])

    def _sample(self, slot: int) -> int | None:
        cached = self.cached[slot]
        # The tokens "a" to "z" of tests/support/checkpoints.py's vocabulary.
        self._last[slot] = 67 + sum(place * token for place, token in enumerate(cached, 1)) % 26
        return None if len(cached) == self._nan_at else self._last[slot]


class FakePages(FakeSteps):
    """The same over pages, of which each slot has those that it was told. As on a GPU a slot has its last token and its
    position, which a prompt's last chunk sets and a decoded token moves on."""

    def __init__(
        self,
        num_slots: int = 3,
        context_tokens: int = 128,
        runs_ahead: bool = False,
        nan_at: int | None = None,
        page_tokens: int = 16,
        num_pages: int = 0,
    ) -> None:
        super().__init__(num_slots, context_tokens, runs_ahead, nan_at)
        self.page_tokens = page_tokens
        self.num_pages = num_pages or num_slots * -(-context_tokens // page_tokens)
        self._memory: list[list[int]] = [[-1] * page_tokens for _ in range(self.num_pages)]
        self._tables: list[list[int]] = [[] for _ in range(num_slots)]
        self._positions = [0] * num_slots

    def set_pages(self, slot: int, pages: Sequence[int]) -> None:
        self._tables[slot] = list(pages)

    def copy_tokens(self, source: int, target: int, num_tokens: int) -> None:
        assert source != target
        self._memory[target][:num_tokens] = self._memory[source][:num_tokens]
        self.num_copied += num_tokens

    def prefill(self, slot: int, chunk: Sequence[int], begin: int, is_last: bool) -> PendingTokens | None:
        for place, token in enumerate(chunk, begin):
            self._write(slot, place, token)
        self.num_prefilled += len(chunk)
        if not is_last:
            return None
        self._positions[slot] = begin + len(chunk)
        return FakeTokens(self, [self._sample(slot)])

    def decode(self, slots: Sequence[int]) -> PendingTokens:
        for slot in slots:
            self._write(slot, self._positions[slot], self._last[slot])
            self._positions[slot] += 1
        return FakeTokens(self, [self._sample(slot) for slot in slots])

    def _write(self, slot: int, place: int, token: int) -> None:
        self._memory[self._tables[slot][place // self.page_tokens]][place % self.page_tokens] = token

    def _sample(self, slot: int) -> int | None:
        columns = [column for page in self._tables[slot] for column in self._memory[page]]
        self.cached[slot] = columns[: self._positions[slot]]
        return super()._sample(slot)


class FakeStates(FakeSteps):
    """The same with a recurrent state: a row has taken in a list of tokens, and is only copied, cleared or led on.
    keeps_states: on the way through a chunk too."""

    def __init__(
        self, num_slots: int = 3, context_tokens: int = 512, runs_ahead: bool = False, keeps_states: bool = False
    ) -> None:
        super().__init__(num_slots, context_tokens, runs_ahead)
        self.has_states, self.keeps_states = True, keeps_states
        self.num_passes = 0
        num_kept = num_snapshots(num_slots)
        self.cached = [[] for _ in range(num_slots + 1 + num_kept)]
        self._history = StateHistory(num_slots, num_kept, self._copy, lambda row: self.cached[row].clear())

    def _copy(self, source: int, target: int) -> None:
        self.cached[target] = self.cached[source][:]

    def reusable_tokens(self, slot: int, num_tokens: int) -> int:
        return self._history.reusable_tokens(slot, num_tokens)

    def prefill(self, slot: int, chunk: Sequence[int], begin: int, is_last: bool) -> PendingTokens | None:
        self._history.begin(slot, begin)
        self._history.advance(slot, len(chunk))
        assert len(self.cached[slot]) == begin
        self.num_passes += 1
        if self._kept_at and (row := self._history.keep(slot, self._kept_at)) is not None:
            self.cached[row] = [*self.cached[slot], *chunk[: self._kept_at - begin]]
        return super().prefill(slot, chunk, begin, is_last)

    def decode(self, slots: Sequence[int]) -> PendingTokens:
        for slot in slots:
            self._history.advance(slot, 1)
        return super().decode(slots)


class FakePagedStates(FakePages):
    """Pages and a recurrent state, which must have taken in what the pages hold."""

    def __init__(
        self,
        num_slots: int = 3,
        context_tokens: int = 512,
        page_tokens: int = 16,
        num_pages: int = 0,
        keeps_states: bool = False,
    ) -> None:
        super().__init__(num_slots, context_tokens, page_tokens=page_tokens, num_pages=num_pages)
        self.has_states, self.keeps_states = True, keeps_states
        num_kept = num_snapshots(num_slots)
        self.states: list[list[int]] = [[] for _ in range(num_slots + 1 + num_kept)]
        self._history = StateHistory(num_slots, num_kept, self._copy_state, lambda row: self.states[row].clear())

    def _copy_state(self, source: int, target: int) -> None:
        self.states[target] = self.states[source][:]

    def reusable_tokens(self, slot: int, num_tokens: int) -> int:
        return self._history.reusable_tokens(slot, num_tokens)

    def prefill(self, slot: int, chunk: Sequence[int], begin: int, is_last: bool) -> PendingTokens | None:
        self._history.begin(slot, begin)
        self._history.advance(slot, len(chunk))
        assert len(self.states[slot]) == begin
        if self._kept_at and (row := self._history.keep(slot, self._kept_at)) is not None:
            self.states[row] = [*self.states[slot], *chunk[: self._kept_at - begin]]
        self.states[slot] += chunk
        return super().prefill(slot, chunk, begin, is_last)

    def decode(self, slots: Sequence[int]) -> PendingTokens:
        for slot in slots:
            self._history.advance(slot, 1)
            self.states[slot].append(self._last[slot])
        return super().decode(slots)

    def _sample(self, slot: int) -> int | None:
        token = super()._sample(slot)
        assert self.states[slot] == self.cached[slot]
        return token
