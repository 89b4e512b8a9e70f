"""What the scheduler asks of a model, and the plain way to do it, pass by pass.

EagerSteps serves CPUs and models that cannot be captured; decode/cuda_graphs.py does the same in CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from core.engine.sampling_params import Sampling
from core.worker.decode.cpu_decode import FastDecodePass
from core.worker.decode.cpu_threads import AdaptiveThreads
from core.worker.decode.sampling import sample
from core.worker.model.model_runner import ModelRunner


class PendingTokens(Protocol):
    """Tokens that a step samples."""

    def wait(self) -> list[int | None]:
        """One token for each slot of the step, as soon as they are known. None where the logits hold a NaN."""


class Steps(Protocol):
    """One step of the model at a time. `runs_ahead`: a step may be enqueued before the last one's tokens are known;
    the GPU then remembers each slot's last token. `has_states`: some layers have a recurrent state. `vocabulary`: how
    many tokens there are."""

    runs_ahead: bool
    has_states: bool
    num_slots: int
    context_tokens: int
    vocabulary: int

    def reset_slot(self, slot: int, sampling: Sampling, seed: int, tokens: Sequence[int]) -> None:
        """Give the slot to a new request, whose prompt is `tokens`. Its cached keys and values stay."""

    def reusable_tokens(self, slot: int, num_tokens: int) -> int:
        """How many of the slot's first `num_tokens` tokens, which were read or written before, need not be read again:
        all that lie in a KV cache, but of a model with recurrent layers those up to a state that is kept."""

    def prefill(self, slot: int, chunk: Sequence[int], begin: int, is_last: bool) -> PendingTokens | None:
        """Prefill `chunk` of the slot's prompt, at positions from `begin` on. The last chunk samples a token.

        The first chunk begins where `reusable_tokens` said, each other one where the one before it ended.
        """

    def decode(self, slots: Sequence[int]) -> PendingTokens:
        """Decode the next token of each of `slots`, in ascending order."""


class ReadyTokens:
    """Tokens that are known already."""

    def __init__(self, tokens: list[int | None]) -> None:
        self._tokens = tokens

    def wait(self) -> list[int | None]:
        return self._tokens


class SlotState:
    """What a slot's next token depends on, beside the KV cache."""

    def __init__(self, sampling: Sampling, generator: torch.Generator, tokens: Sequence[int]) -> None:
        self.sampling = sampling
        self.generator = generator
        self.seen = set(tokens)
        self.token = 0
        self.position = 0


class EagerSteps:
    """Steps as plain passes over the model, each finished before the next. `fast_decode`: a faster pass, if any."""

    runs_ahead = False

    def __init__(self, model: ModelRunner, fast_decode: FastDecodePass | None = None) -> None:
        self._model = model
        self._fast_decode = fast_decode
        self._threads = AdaptiveThreads() if model.device.type == "cpu" else None
        self.num_slots = model.cache.num_slots
        self.has_states = model.cache.has_states
        self.context_tokens = model.cache.context_tokens
        self.vocabulary = model.vocabulary
        self._states: dict[int, SlotState] = {}

    def reset_slot(self, slot: int, sampling: Sampling, seed: int, tokens: Sequence[int]) -> None:
        generator = torch.Generator(self._model.logits_device).manual_seed(seed)
        self._states[slot] = SlotState(sampling, generator, tokens)

    def reusable_tokens(self, slot: int, num_tokens: int) -> int:
        return self._model.cache.reusable_tokens(slot, num_tokens)

    def prefill(self, slot: int, chunk: Sequence[int], begin: int, is_last: bool) -> PendingTokens | None:
        self._adapt_threads()
        self._model.cache.begin_prefill(slot, begin, len(chunk))
        end = begin + len(chunk)
        logits = self._prefill(slot, chunk, begin, end)
        if not is_last:
            return None
        self._states[slot].position = end - 1
        return ReadyTokens([self._sample(slot, logits[0])])

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
        if self._fast_decode is None:
            logits = self._decode_range(slots)
        else:
            states = [self._states[slot] for slot in slots]
            tokens, positions = [state.token for state in states], [state.position for state in states]
            logits = self._fast_decode.forward(slots, tokens, positions)
        return ReadyTokens([self._sample(slot, row) for slot, row in zip(slots, logits, strict=True)])

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

    def _sample(self, slot: int, logits: torch.Tensor) -> int | None:
        state, logits = self._states[slot], logits.float()
        if logits.max().isnan():  # The maximum is NaN where any logit is.
            return None
        is_penalized = state.sampling.repetition_penalty != 1.0
        seen = torch.tensor(sorted(state.seen) if is_penalized else [], dtype=torch.long, device=logits.device)
        state.token = sample(logits, state.sampling, seen, state.generator)
        state.seen.add(state.token)
        state.position += 1
        return state.token
