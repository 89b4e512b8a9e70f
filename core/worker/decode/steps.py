"""One step of the engine at a time, pass by pass: read a piece of a prompt, write a token for each of some slots.

The plain way, for a CPU and for what cannot be captured. core/worker/decode/cuda_graphs.py does it in CUDA graphs.
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
    """Tokens that a step draws. `wait` waits until they are known: one for each slot, None where no number came out."""

    def wait(self) -> list[int | None]: ...


class Steps(Protocol):
    """What the scheduler asks of a model. With `runs_ahead` a step may be asked for before the last one's tokens
    are known: what a slot wrote last is then remembered on the GPU."""

    runs_ahead: bool
    num_slots: int
    context_tokens: int
    vocabulary: int

    def reset_slot(self, slot: int, sampling: Sampling, seed: int, tokens: Sequence[int]) -> None:
        """The slot belongs to a new request from now on, whose prompt is `tokens`."""

    def prefill(self, slot: int, chunk: Sequence[int], begin: int, is_last: bool) -> PendingTokens | None:
        """Read `chunk` of the slot's prompt from position `begin` on. The last chunk draws the answer's first token."""

    def decode(self, slots: Sequence[int]) -> PendingTokens:
        """The next token of each of `slots`, which are in ascending order."""


class ReadyTokens:
    """Tokens that are there already."""

    def __init__(self, tokens: list[int | None]) -> None:
        self._tokens = tokens

    def wait(self) -> list[int | None]:
        return self._tokens


class SlotState:
    """What a slot's next token follows from, beside its keys and values."""

    def __init__(self, sampling: Sampling, generator: torch.Generator, tokens: Sequence[int]) -> None:
        self.sampling = sampling
        self.generator = generator
        self.seen = set(tokens)
        self.token = 0
        self.position = 0


class EagerSteps:
    """Steps as plain passes over the model, each finished before the next; tokens by a fast pass if there is one."""

    runs_ahead = False

    def __init__(self, model: ModelRunner, fast_decode: FastDecodePass | None = None) -> None:
        self._model = model
        self._fast_decode = fast_decode
        self._threads = AdaptiveThreads() if model.device.type == "cpu" else None
        self.num_slots = model.cache.num_slots
        self.context_tokens = model.cache.context_tokens
        self.vocabulary = model.vocabulary
        self._states: dict[int, SlotState] = {}

    def reset_slot(self, slot: int, sampling: Sampling, seed: int, tokens: Sequence[int]) -> None:
        generator = torch.Generator(self._model.logits_device).manual_seed(seed)
        self._states[slot] = SlotState(sampling, generator, tokens)

    def prefill(self, slot: int, chunk: Sequence[int], begin: int, is_last: bool) -> PendingTokens | None:
        self._adapt_threads()
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
        if self._fast_decode is None:
            logits = self._decode_plainly(slots)
        else:
            rows = [self._states[slot] for slot in slots]
            logits = self._fast_decode.forward(slots, [row.token for row in rows], [row.position for row in rows])
        return ReadyTokens([self._sample(slot, row) for slot, row in zip(slots, logits, strict=True)])

    def _adapt_threads(self) -> None:
        if self._threads is not None:
            self._threads.adapt()

    def _decode_plainly(self, slots: Sequence[int]) -> torch.Tensor:
        between = range(slots[0], slots[-1] + 1)
        rows = [self._states[slot] if slot in slots else None for slot in between]
        # Rows between that are not being written compute along; what they write goes where nobody reads.
        unread, device = self._model.cache.unread_column, self._model.device
        logits = self._model.forward(
            torch.tensor([[row.token if row else 0] for row in rows], device=device),
            torch.tensor([[row.position if row else 0] for row in rows], device=device),
            slots[0],
            max(row.position for row in rows if row) + 1,
            torch.tensor([[row.position if row else unread] for row in rows], device=device),
        )
        return logits[[slot - slots[0] for slot in slots]]

    def _sample(self, slot: int, logits: torch.Tensor) -> int | None:
        row, logits = self._states[slot], logits.float()
        if logits.max().isnan():  # Where one is none, neither is the largest.
            return None
        is_penalized = row.sampling.repetition_penalty != 1.0
        seen = torch.tensor(sorted(row.seen) if is_penalized else [], dtype=torch.long, device=logits.device)
        row.token = sample(logits, row.sampling, seen, row.generator)
        row.seen.add(row.token)
        row.position += 1
        return row.token
