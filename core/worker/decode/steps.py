"""What the scheduler asks of a model, and the plain way to do it, pass by pass.

EagerSteps serves CPUs and models that cannot be captured; decode/cuda_graphs.py does the same in CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from core.engine.sampling_params import Sampling
from core.memory.plan import SCORED_TOKENS
from core.memory.step_sizes import VERIFIED_TOKENS
from core.worker.decode.cpu_decode import FastDecodePass
from core.worker.decode.cpu_threads import AdaptiveThreads
from core.worker.decode.draw_rules import NO_RULES, DrawRules
from core.worker.decode.logprobs import TokenLogprobs, logprobs_of
from core.worker.decode.prompt_chunk import PromptChunk
from core.worker.decode.slot_draw import SlotDraw
from core.worker.decode.step_times import StepTimes
from core.worker.model.model_runner import ModelRunner


class PendingTokens(Protocol):
    """Tokens that a step samples."""

    def draw_rest(self) -> None:
        """Enqueue the draws of those slots whose grammar has to know the tokens before. To be called once those were
        waited for and accepted, and before another step is enqueued."""

    def wait(self) -> list[int | None]:
        """One token for each slot of the step, as soon as they are known. None where the logits hold a NaN."""

    def logprobs(self) -> Sequence[TokenLogprobs | None]:
        """Of each slot's token, where its request asks for them. To be called after `wait`."""


class Steps(Protocol):
    """One step of the model at a time. `runs_ahead`: a step may be enqueued before the last one's tokens are known;
    the GPU then remembers each slot's last token. `has_states`: some layers have a recurrent state; `keeps_states`: a
    pass keeps them on its way too, DELTA_TOKENS or a multiple of it from its beginning. `vocabulary`: how many tokens
    there are. `page_tokens`: how many tokens a page of the cache holds, of which there are `num_pages`, from 0 on; both
    are 0 where each slot has room for a whole context of its own. `max_chunks`: of how many prompts a pass may read a
    chunk. `pass_sizes`: how many tokens of prompts passes are made for, ascending, of which one with fewer takes as
    long; none where it takes less. `max_verified`: how many tokens of one slot `verify` takes, 0 where it cannot;
    `verify_steps`: in the time of how many steps of one token."""

    runs_ahead: bool
    has_states: bool
    keeps_states: bool
    max_chunks: int
    pass_sizes: Sequence[int]
    max_verified: int
    num_slots: int
    context_tokens: int
    vocabulary: int
    page_tokens: int
    num_pages: int

    def set_pages(self, slot: int, pages: Sequence[int]) -> None:
        """Let the slot's tokens lie in `pages`, the first `page_tokens` of them in the first one: for steps that are
        asked for from now on. What a slot writes beyond its pages is lost.

        Where there are pages for a whole context of every slot, each has its own until this is called: slot s those
        from s * pages of a context on.
        """

    def reset_slot(
        self, slot: int, sampling: Sampling, seed: int, tokens: Sequence[int], rules: DrawRules = NO_RULES
    ) -> None:
        """Give the slot to a new request, whose prompt is `tokens`. Its cached keys and values stay.

        Where its samplers are slow, its next token may be asked for only when the last one was waited for.
        """

    def reusable_tokens(self, slot: int, num_tokens: int) -> int:
        """How many of the slot's first `num_tokens` tokens, which were read or written before, need not be read again:
        all that lie in a KV cache, but of a model with recurrent layers those up to a state that is kept."""

    def copy_tokens(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the keys and values of the first `num_tokens` tokens of one page to another: for steps that are asked
        for from now on. Where there are no pages, of one slot to another, which needs a model without recurrent layers.
        """

    def prefill(self, slot: int, chunk: Sequence[int], begin: int, is_last: bool) -> PendingTokens | None:
        """Prefill `chunk` of the slot's prompt, at positions from `begin` on. The last chunk samples a token.

        The first chunk begins where `reusable_tokens` said, each other one where the one before it ended.
        """

    def prefill_chunks(self, chunks: Sequence[PromptChunk]) -> PendingTokens | None:
        """As `prefill`, for chunks of up to `max_chunks` slots; a token for each that is a prompt's last, in order."""

    def score(
        self, slot: int, chunk: Sequence[int], begin: int, following: Sequence[int], num_top: int
    ) -> list[TokenLogprobs]:
        """Prefill `chunk` as `prefill` does; of each token of `following`, which comes after the chunk's at its place,
        the log-probability, with the `num_top` likeliest."""

    def decode(self, slots: Sequence[int]) -> PendingTokens:
        """Decode the next token of each of `slots`, in ascending order."""

    @property
    def verify_steps(self) -> float: ...

    def verify(self, slot: int, tokens: Sequence[int], begin: int) -> PendingTokens:
        """Decode several `tokens` of a slot in one step, at positions from `begin` on: its last one, and some that may
        follow. It gives the tokens that are drawn, which are those that `decode` would give, up to the first that is
        not what was to follow. No step of the slot may be in flight, and none may follow before it was waited for.
        """


class ReadyTokens:
    """Tokens that are known already."""

    def __init__(self, tokens: list[int | None], logprobs: Sequence[TokenLogprobs | None] = ()) -> None:
        self._tokens = tokens
        self._logprobs = logprobs or [None] * len(tokens)

    def draw_rest(self) -> None:
        """All are drawn."""

    def wait(self) -> list[int | None]:
        return self._tokens

    def logprobs(self) -> Sequence[TokenLogprobs | None]:
        return self._logprobs


class JoinedTokens:
    """Tokens of several steps, one after the other."""

    def __init__(self, parts: Sequence[PendingTokens]) -> None:
        self._parts = parts

    def draw_rest(self) -> None:
        for part in self._parts:
            part.draw_rest()

    def wait(self) -> list[int | None]:
        return [token for part in self._parts for token in part.wait()]

    def logprobs(self) -> Sequence[TokenLogprobs | None]:
        return [one for part in self._parts for one in part.logprobs()]


class SlotState:
    """What a slot's next token depends on, beside the KV cache."""

    def __init__(self, drawing: SlotDraw) -> None:
        self.drawing = drawing
        self.token = 0
        self.position = 0


class EagerSteps:
    """Steps as plain passes over the model, each finished before the next. `fast_decode`: a faster pass, if any."""

    runs_ahead = keeps_states = False
    max_chunks = 1
    pass_sizes: Sequence[int] = ()

    def __init__(self, model: ModelRunner, fast_decode: FastDecodePass | None = None) -> None:
        self._model = model
        self._fast_decode = fast_decode
        self._threads = AdaptiveThreads() if model.device.type == "cpu" else None
        self.num_slots = model.cache.num_slots
        self.has_states = model.cache.has_states
        self.context_tokens = model.cache.context_tokens
        self.vocabulary = model.vocabulary
        self.page_tokens, self.num_pages = model.cache.page_tokens, model.cache.num_pages
        # The faster pass alone computes rows of one slot to the last bit as one after the other.
        self.max_verified = 0 if fast_decode is None else VERIFIED_TOKENS
        self._times = StepTimes()
        self._states: dict[int, SlotState] = {}

    def set_pages(self, slot: int, pages: Sequence[int]) -> None:
        self._model.cache.set_pages(slot, pages)

    def reset_slot(
        self, slot: int, sampling: Sampling, seed: int, tokens: Sequence[int], rules: DrawRules = NO_RULES
    ) -> None:
        # What is slow runs on a CPU, wherever the model does.
        device = "cpu" if sampling.is_slow else self._model.logits_device
        generator = torch.Generator(device).manual_seed(seed)
        self._states[slot] = SlotState(SlotDraw(sampling, generator, tokens, self.vocabulary, rules))

    def reusable_tokens(self, slot: int, num_tokens: int) -> int:
        return self._model.cache.reusable_tokens(slot, num_tokens)

    def copy_tokens(self, source: int, target: int, num_tokens: int) -> None:
        self._model.cache.copy_tokens(source, target, num_tokens)

    def prefill(self, slot: int, chunk: Sequence[int], begin: int, is_last: bool) -> PendingTokens | None:
        self._adapt_threads()
        self._model.cache.begin_prefill(slot, begin, len(chunk))
        end = begin + len(chunk)
        logits = self._prefill(slot, chunk, begin, end)
        if not is_last:
            return None
        self._states[slot].position = end - 1
        return self._sampled([slot], logits)

    def prefill_chunks(self, chunks: Sequence[PromptChunk]) -> PendingTokens | None:
        ((slot, tokens, begin, is_last, _),) = chunks
        return self.prefill(slot, tokens, begin, is_last)

    def score(
        self, slot: int, chunk: Sequence[int], begin: int, following: Sequence[int], num_top: int
    ) -> list[TokenLogprobs]:
        self._adapt_threads()
        scores: list[TokenLogprobs] = []
        # Few at a time: each has logits for the whole vocabulary.
        for first in range(0, len(chunk), SCORED_TOKENS):
            part = chunk[first : first + SCORED_TOKENS]
            device, start = self._model.device, begin + first
            positions = torch.arange(start, start + len(part), device=device).unsqueeze(0)
            tokens = torch.tensor([part], device=device)
            self._model.cache.begin_prefill(slot, start, len(part))
            logits = self._model.forward_all(tokens, positions, slot, start + len(part))
            rows = zip(logits, following[first : first + SCORED_TOKENS], strict=True)
            scores += [logprobs_of(row, token, num_top) for row, token in rows]
        return scores

    def _prefill(self, slot: int, chunk: Sequence[int], begin: int, end: int) -> torch.Tensor:
        if self._fast_decode is not None and len(chunk) == 1:
            return self._fast_decode.forward([slot], chunk, [begin])
        device = self._model.device
        tokens = torch.tensor([chunk], device=device)
        positions = torch.arange(begin, end, device=device).unsqueeze(0)
        return self._model.forward(tokens, positions, slot, end)

    def decode(self, slots: Sequence[int]) -> PendingTokens:
        self._adapt_threads()
        self._model.cache.begin_decode(slots)
        with self._times.decoding(len(slots)):
            if self._fast_decode is None:
                logits = self._decode_range(slots)
            else:
                states = [self._states[slot] for slot in slots]
                tokens, positions = [state.token for state in states], [state.position for state in states]
                logits = self._fast_decode.forward(slots, tokens, positions)
            return self._sampled(slots, logits)

    @property
    def verify_steps(self) -> float:
        return self._times.verify_steps

    def verify(self, slot: int, tokens: Sequence[int], begin: int) -> PendingTokens:
        self._adapt_threads()
        with self._times.verifying():
            assert self._fast_decode is not None
            positions = range(begin, begin + len(tokens))
            logits = self._fast_decode.forward([slot] * len(tokens), tokens, positions)
            drawn = list[int | None]()
            for row, following in zip(logits, [*tokens[1:], None], strict=True):
                drawn.append(self._sample(slot, row))
                if drawn[-1] is None or drawn[-1] != following:
                    break
        return ReadyTokens(drawn)

    def _adapt_threads(self) -> None:
        if self._threads is not None:
            self._threads.adapt()

    def _decode_range(self, slots: Sequence[int]) -> torch.Tensor:
        """Logits of `slots`, by one pass over all slots from the first to the last of them."""
        states = [self._states[slot] if slot in slots else None for slot in range(slots[0], slots[-1] + 1)]
        # Slots between that decode nothing compute along. Their keys and values go to the column that nobody reads.
        unread, device = self._model.cache.unread_column, self._model.device
        logits = self._model.forward(
            torch.tensor([[state.token if state else 0] for state in states], device=device),
            torch.tensor([[state.position if state else 0] for state in states], device=device),
            slots[0],
            max(state.position for state in states if state) + 1,
            torch.tensor([[state.position if state else unread] for state in states], device=device),
        )
        return logits[[slot - slots[0] for slot in slots]]

    def _sampled(self, slots: Sequence[int], logits: torch.Tensor) -> ReadyTokens:
        tokens = [self._sample(slot, row) for slot, row in zip(slots, logits, strict=True)]
        return ReadyTokens(tokens, [self._states[slot].drawing.logprobs for slot in slots])

    def _sample(self, slot: int, logits: torch.Tensor) -> int | None:
        state = self._states[slot]
        token = state.drawing.draw(logits)
        if token is not None:
            state.token = token
            state.position += 1
        return token
