"""The engine's loop: who is read, who is written, one small step at a time; knows no pipe, no file and no page.

A step reads one chunk of one prompt and draws one token for every answer that is being written, so that nobody waits
for somebody else's long prompt. Requests beyond the slots wait in the order in which they came.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer

from core.engine.detokenize import TextStream
from core.engine.messages import MAX_SEED, AnswerStats, Began, Event, Failed, Finished, Generate, Reason, Text
from core.engine.model import SlotModel
from core.engine.sampling import draw
from core.errors import EngineError

# Pieces of text go out at most this often: faster than a page shows them, slower than a fast card writes them.
FLUSH_S = 0.03


@dataclass(slots=True)
class Slot:
    """One row of the cache and the tokens whose keys and values it holds."""

    index: int
    held: list[int] = field(default_factory=list)
    sequence: Sequence | None = None


@dataclass(slots=True)
class Sequence:
    """One request at work. `tokens` is the prompt and what was drawn; the slot holds a beginning of it."""

    command: Generate
    tokens: list[int]
    num_prompt: int
    stream: TextStream
    generator: torch.Generator
    seed: int
    asked_s: float
    began_s: float = 0.0
    first_token_s: float = 0.0
    num_reused: int = 0
    unsent: str = ""
    sent_s: float = 0.0

    @property
    def num_drawn(self) -> int:
        return len(self.tokens) - self.num_prompt


class Scheduler:
    """Answers requests over a model's slots. `emit` gets every event; `step` does a little work and returns."""

    def __init__(
        self,
        model: SlotModel,
        tokenizer: Tokenizer,
        end_tokens: frozenset[int],
        chunk_tokens: int,
        emit: Callable[[Event], None],
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens
        self._chunk_tokens = chunk_tokens
        self._emit = emit
        self._slots = [Slot(index) for index in range(model.cache.num_slots)]
        self._waiting: deque[Sequence] = deque()
        self._next_read = 0

    @property
    def is_idle(self) -> bool:
        return not self._waiting and all(slot.sequence is None for slot in self._slots)

    @property
    def requests(self) -> list[int]:
        """Everything that is waiting or at work."""
        busy = [slot.sequence for slot in self._slots if slot.sequence is not None]
        return [sequence.command.request for sequence in [*busy, *self._waiting]]

    def submit(self, command: Generate) -> None:
        """Queue a request; one that cannot be answered fails at once, with its reason."""
        if isinstance(command.prompt, str):
            tokens = list(self._tokenizer.encode(command.prompt, add_special_tokens=False).ids)
        else:
            tokens = list(command.prompt)
        limit = self._model.cache.context_tokens
        if not tokens:
            self._emit(Failed(command.request, EngineError("prompt_empty")))
        elif len(tokens) >= limit:
            self._emit(Failed(command.request, EngineError("prompt_too_long", tokens=len(tokens), limit=limit)))
        elif not 0 <= min(tokens) <= max(tokens) < self._model.vocabulary:
            self._emit(Failed(command.request, EngineError("prompt_token", limit=self._model.vocabulary - 1)))
        else:
            self._waiting.append(self._make_sequence(command, tokens))

    def cancel(self, request: int) -> None:
        """End a request now; what was written so far has been sent."""
        for slot in self._slots:
            if slot.sequence is not None and slot.sequence.command.request == request:
                self._finish(slot, "cancelled")
        for sequence in [one for one in self._waiting if one.command.request == request]:
            self._waiting.remove(sequence)
            self._emit(Finished(request, "cancelled", self._stats(sequence)))

    @torch.inference_mode()
    def step(self) -> None:
        """Give free slots to waiting requests, read one chunk of a prompt, draw one token for every running answer."""
        self._admit()
        self._read_chunk()
        self._write_tokens()

    def _make_sequence(self, command: Generate, tokens: list[int]) -> Sequence:
        seed = command.sampling.seed
        seed = secrets.randbelow(MAX_SEED) if seed is None else seed
        return Sequence(
            command=command,
            tokens=tokens,
            num_prompt=len(tokens),
            stream=TextStream(self._tokenizer, command.sampling.stop),
            generator=torch.Generator(self._model.device).manual_seed(seed),
            seed=seed,
            asked_s=time.perf_counter(),
        )

    def _admit(self) -> None:
        free = [slot for slot in self._slots if slot.sequence is None]
        while free and self._waiting:
            sequence = self._waiting.popleft()
            slot = max(free, key=lambda slot: (common_prefix(slot.held, sequence.tokens), -len(slot.held)))
            free.remove(slot)
            # The last token is always read again: its logits are what the answer begins with.
            sequence.num_reused = min(common_prefix(slot.held, sequence.tokens), len(sequence.tokens) - 1)
            slot.held = slot.held[: sequence.num_reused]
            slot.sequence = sequence
            sequence.began_s = sequence.sent_s = time.perf_counter()
            self._emit(Began(sequence.command.request, sequence.num_prompt, sequence.num_reused))

    def _read_chunk(self) -> None:
        reading = [slot for slot in self._slots if slot.sequence and is_reading(slot)]
        if not reading:
            return
        # Round robin: the slot after the one that was read last.
        slot = min(reading, key=lambda slot: (slot.index - self._next_read) % len(self._slots))
        self._next_read = slot.index + 1
        sequence = slot.sequence
        assert sequence is not None
        begin = len(slot.held)
        chunk = sequence.tokens[begin : min(begin + self._chunk_tokens, sequence.num_prompt)]
        end = begin + len(chunk)
        tokens = torch.tensor([chunk], device=self._model.device)
        positions = torch.arange(begin, end, device=self._model.device).unsqueeze(0)
        logits = self._model.forward(tokens, positions, slot.index, end)
        slot.held += chunk
        if end == sequence.num_prompt:
            self._draw(slot, logits[0])

    def _write_tokens(self) -> None:
        writing = [slot for slot in self._slots if slot.sequence and not is_reading(slot)]
        if not writing:
            return
        rows = self._slots[writing[0].index : writing[-1].index + 1]
        tokens = [[slot.sequence.tokens[-1] if slot in writing and slot.sequence else 0] for slot in rows]
        # Rows between that are not being written compute along; what they write goes where nobody reads.
        positions = [[len(slot.held) if slot in writing else 0] for slot in rows]
        targets = [[len(slot.held) if slot in writing else self._model.cache.unread_column] for slot in rows]
        device, length = self._model.device, max(len(slot.held) for slot in writing) + 1
        logits = self._model.forward(
            torch.tensor(tokens, device=device),
            torch.tensor(positions, device=device),
            rows[0].index,
            length,
            torch.tensor(targets, device=device),
        )
        for row, slot in enumerate(rows):
            if slot in writing:
                assert slot.sequence is not None
                slot.held.append(slot.sequence.tokens[-1])
                self._draw(slot, logits[row])

    def _draw(self, slot: Slot, logits: torch.Tensor) -> None:
        """Draw the next token of a slot's answer, send its text, and end the answer where it ends."""
        sequence = slot.sequence
        assert sequence is not None
        sampling = sequence.command.sampling
        if logits.isnan().any():
            self._fail(slot, EngineError("not_a_number"))
            return
        token = draw(logits, sampling, self._seen(sequence, logits.device), sequence.generator)
        if sequence.num_drawn == 0:
            sequence.first_token_s = time.perf_counter()
        sequence.tokens.append(token)
        if token in self._end_tokens:
            self._finish(slot, "end")
            return
        sequence.unsent += sequence.stream.push(token)
        if sequence.stream.stopped:
            self._finish(slot, "stop")
        elif sequence.num_drawn >= sampling.max_new_tokens:
            self._finish(slot, "length")
        elif len(slot.held) >= self._model.cache.context_tokens:
            self._finish(slot, "context")
        elif sequence.num_drawn == 1 or time.perf_counter() - sequence.sent_s >= FLUSH_S:
            self._send_text(sequence)

    def _fail(self, slot: Slot, error: EngineError) -> None:
        sequence, slot.sequence, slot.held = slot.sequence, None, []
        assert sequence is not None
        self._send_text(sequence)
        self._emit(Failed(sequence.command.request, error))

    def _seen(self, sequence: Sequence, device: torch.device) -> torch.Tensor:
        is_used = sequence.command.sampling.repetition_penalty != 1.0
        return torch.tensor(sorted(set(sequence.tokens)) if is_used else [], dtype=torch.long, device=device)

    def _send_text(self, sequence: Sequence) -> None:
        if sequence.unsent:
            self._emit(Text(sequence.command.request, sequence.unsent, sequence.num_drawn))
        sequence.unsent, sequence.sent_s = "", time.perf_counter()

    def _finish(self, slot: Slot, reason: Reason) -> None:
        sequence, slot.sequence = slot.sequence, None
        assert sequence is not None
        if not sequence.stream.stopped:
            sequence.unsent += sequence.stream.flush()
        self._send_text(sequence)
        self._emit(Finished(sequence.command.request, reason, self._stats(sequence)))

    def _stats(self, sequence: Sequence) -> AnswerStats:
        now = time.perf_counter()
        began = sequence.began_s or now
        first = sequence.first_token_s or now
        return AnswerStats(
            prompt_tokens=sequence.num_prompt,
            reused_tokens=sequence.num_reused,
            num_tokens=sequence.num_drawn,
            queued_s=began - sequence.asked_s,
            prefill_s=first - began,
            decode_s=now - first,
            seed=sequence.seed,
        )


def is_reading(slot: Slot) -> bool:
    """Whether the slot's prompt is not read to its end yet."""
    return slot.sequence is not None and len(slot.held) < slot.sequence.num_prompt


def common_prefix(held: list[int], tokens: list[int]) -> int:
    """How many first tokens two lists share."""
    shared = 0
    for one, other in zip(held, tokens, strict=False):
        if one != other:
            break
        shared += 1
    return shared
