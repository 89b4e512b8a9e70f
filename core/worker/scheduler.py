"""The engine's loop: who is read, who is written, one small step at a time; knows no pipe, no file and no page.

A step reads one chunk of one prompt and draws one token for every answer that is being written, so that nobody waits
for somebody else's long prompt. Requests beyond the slots wait for their turn (turns.py). On a GPU the next step is
under way before the last one's tokens are looked at; what an answer that ended got too much is dropped.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer

from core.common.errors import EngineError
from core.common.panics import panics_as_errors, why_of
from core.common.values import printable
from core.engine.detokenize import TextStream
from core.engine.fair_queue import FairQueue
from core.engine.protocol import AnswerStats, Event, Failed, Finished, Generate, PromptStarted, Reason, TextChunk
from core.engine.sampling_params import MAX_SEED
from core.worker.decode.steps import Drawn, Steps

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
    seed: int
    asked_s: float
    began_s: float = 0.0
    first_token_s: float = 0.0
    num_reused: int = 0
    unsent: str = ""
    sent_s: float = 0.0
    # How many tokens were told of: some are no text by themselves.
    num_told: int = 0
    # Tokens that were asked for and not yet looked at.
    num_flying: int = 0

    @property
    def num_drawn(self) -> int:
        return len(self.tokens) - self.num_prompt


class Scheduler:
    """Answers requests over a model's slots. `emit` gets every event; `step` does a little work and returns."""

    def __init__(
        self,
        steps: Steps,
        tokenizer: Tokenizer,
        end_tokens: frozenset[int],
        chunk_tokens: int,
        emit: Callable[[Event], None],
    ) -> None:
        self._steps = steps
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens
        self._chunk_tokens = chunk_tokens
        self._emit = emit
        self._slots = [Slot(index) for index in range(steps.num_slots)]
        self._waiting: FairQueue[Sequence] = FairQueue()
        self._next_read = 0
        # Whose tokens a step that was begun will bring.
        self._flying: deque[tuple[Drawn, list[tuple[Slot, Sequence]]]] = deque()

    @property
    def is_idle(self) -> bool:
        return not (self._waiting or self._flying) and all(slot.sequence is None for slot in self._slots)

    @property
    def requests(self) -> list[int]:
        """Everything that is waiting or at work."""
        busy = [slot.sequence for slot in self._slots if slot.sequence is not None]
        return [sequence.command.request for sequence in [*busy, *self._waiting]]

    def submit(self, command: Generate) -> None:
        """Queue a request; one that cannot be answered fails at once, with its reason."""
        if isinstance(command.prompt, str):
            tokens = list(self._tokenizer.encode(printable(command.prompt), add_special_tokens=False).ids)
        else:
            tokens = list(command.prompt)
        limit = self._steps.context_tokens
        if not tokens:
            self._emit(Failed(command.request, EngineError("prompt_empty")))
        elif len(tokens) >= limit:
            self._emit(Failed(command.request, EngineError("prompt_too_long", tokens=len(tokens), limit=limit)))
        elif not 0 <= min(tokens) <= max(tokens) < self._steps.vocabulary:
            self._emit(Failed(command.request, EngineError("prompt_token", limit=self._steps.vocabulary - 1)))
        else:
            self._waiting.add(self._make_sequence(command, tokens), command.client)

    def cancel(self, request: int) -> None:
        """End a request now; what was written so far has been sent."""
        for slot in self._slots:
            if slot.sequence is not None and slot.sequence.command.request == request:
                self._finish(slot, "cancelled")
        for sequence in [one for one in self._waiting if one.command.request == request]:
            self._waiting.remove(sequence, sequence.command.client)
            self._emit(Finished(request, "cancelled", self._stats(sequence)))

    @torch.inference_mode()
    def step(self) -> None:
        """Give free slots to waiting requests, read one chunk of a prompt, draw one token for every running answer."""
        self._admit()
        num_before = len(self._flying)
        self._read_chunk()
        self._write_tokens()
        # One step stays under way, if there is one after what was under way before.
        num_kept = 1 if self._steps.runs_ahead and len(self._flying) > num_before else 0
        while len(self._flying) > num_kept:
            self._collect(*self._flying.popleft())

    def _make_sequence(self, command: Generate, tokens: list[int]) -> Sequence:
        seed = command.sampling.seed
        seed = secrets.randbelow(MAX_SEED) if seed is None else seed
        return Sequence(
            command=command,
            tokens=tokens,
            num_prompt=len(tokens),
            stream=TextStream(self._tokenizer, command.sampling.stop, tokens[-1:] if command.continues else []),
            seed=seed,
            asked_s=time.perf_counter(),
        )

    def _admit(self) -> None:
        free = [slot for slot in self._slots if slot.sequence is None]
        while free and self._waiting:
            sequence = self._waiting.take()
            slot = max(free, key=lambda slot: (common_prefix(slot.held, sequence.tokens), -len(slot.held)))
            free.remove(slot)
            # The last token is always read again: its logits are what the answer begins with.
            sequence.num_reused = min(common_prefix(slot.held, sequence.tokens), len(sequence.tokens) - 1)
            slot.held = slot.held[: sequence.num_reused]
            slot.sequence = sequence
            self._steps.begin(slot.index, sequence.command.sampling, sequence.seed, sequence.tokens)
            sequence.began_s = sequence.sent_s = time.perf_counter()
            self._emit(PromptStarted(sequence.command.request, sequence.num_prompt, sequence.num_reused))

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
        drawn = self._steps.read(slot.index, chunk, begin, end == sequence.num_prompt)
        slot.held += chunk
        if drawn is not None:
            self._fly(drawn, [(slot, sequence)])

    def _write_tokens(self) -> None:
        writing = [
            (slot, slot.sequence) for slot in self._slots if slot.sequence is not None and self._wants_token(slot)
        ]
        if writing:
            self._fly(self._steps.write([slot.index for slot, _ in writing]), writing)

    def _wants_token(self, slot: Slot) -> bool:
        """Whether a further token is to be drawn, counting those that are under way."""
        sequence = slot.sequence
        if sequence is None or is_reading(slot):
            return False
        if not self._steps.runs_ahead and sequence.num_flying:
            return False
        will_draw = sequence.num_drawn + sequence.num_flying
        is_long_enough = will_draw >= sequence.command.sampling.max_new_tokens
        return not is_long_enough and sequence.num_prompt + will_draw <= self._steps.context_tokens

    def _fly(self, drawn: Drawn, whose: list[tuple[Slot, Sequence]]) -> None:
        self._flying.append((drawn, whose))
        for _, sequence in whose:
            sequence.num_flying += 1

    def _collect(self, drawn: Drawn, whose: list[tuple[Slot, Sequence]]) -> None:
        """Look at what a step drew; whose answer has ended meanwhile, drops it."""
        for (slot, sequence), token in zip(whose, drawn.take(), strict=True):
            sequence.num_flying -= 1
            if slot.sequence is sequence:
                self._push(slot, sequence, token)

    def _push(self, slot: Slot, sequence: Sequence, token: int | None) -> None:
        """Add a token to a slot's answer, send its text, and end the answer where it ends."""
        sampling = sequence.command.sampling
        if token is None:
            self._fail(slot, EngineError("not_a_number"))
            return
        if sequence.num_drawn == 0:
            sequence.first_token_s = time.perf_counter()
        else:
            # The pass that drew this token has put the one before into the cache.
            slot.held.append(sequence.tokens[-1])
        sequence.tokens.append(token)
        if token in self._end_tokens:
            self._finish(slot, "end")
            return
        if not self._take_text(slot, sequence, lambda: sequence.stream.push(token)):
            return
        if sequence.stream.stopped:
            self._finish(slot, "stop")
        elif sequence.num_drawn >= sampling.max_new_tokens:
            self._finish(slot, "length")
        elif len(slot.held) >= self._steps.context_tokens:
            self._finish(slot, "context")
        elif sequence.num_drawn == 1 or time.perf_counter() - sequence.sent_s >= FLUSH_S:
            self._send_text(sequence)

    def _take_text(self, slot: Slot, sequence: Sequence, decode: Callable[[], str]) -> bool:
        """Take what tokens say. Where the tokenizer fails, that ends this answer and no other one: False."""
        try:
            with panics_as_errors():
                sequence.unsent += decode()
                return True
        except Exception as error:  # The tokenizer library raises bare exceptions, and panics.
            self._fail(slot, EngineError("tokenizer_decode", why=why_of(error)))
            return False

    def _fail(self, slot: Slot, error: EngineError) -> None:
        sequence, slot.sequence, slot.held = slot.sequence, None, []
        assert sequence is not None
        self._send_text(sequence)
        self._emit(Failed(sequence.command.request, error))

    def _send_text(self, sequence: Sequence) -> None:
        if sequence.unsent or sequence.num_drawn > sequence.num_told:
            self._emit(TextChunk(sequence.command.request, sequence.unsent, sequence.num_drawn))
        sequence.unsent, sequence.sent_s, sequence.num_told = "", time.perf_counter(), sequence.num_drawn

    def _finish(self, slot: Slot, reason: Reason) -> None:
        sequence = slot.sequence
        assert sequence is not None
        if not sequence.stream.stopped and not self._take_text(slot, sequence, sequence.stream.flush):
            return
        slot.sequence = None
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
