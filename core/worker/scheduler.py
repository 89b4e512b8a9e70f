"""The engine's loop: prefill and decode over all slots, one small step at a time. It needs no torch.

A step prefills a chunk of some prompts, in one pass, and decodes one token for every running answer, so that nobody
waits for somebody else's long prompt. Requests beyond the slots wait for their turn (core/engine/fair_queue.py).
Captured steps run ahead: the next step is enqueued before the last one's tokens are read. Tokens after an answer's end
are dropped.

admission.py gives slots to requests, cache_room.py room in the cache; prompt_reading.py reads prompts, answering.py
writes answers down.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from core.common.errors import EngineError
from core.common.values import printable
from core.engine.protocol import Event, Failed, Finished, Generate, Paused, PromptStarted, TokenChance, TokenInfo
from core.engine.sampling_params import MAX_SEED
from core.tokenizer.token_bytes import TokenBytes
from core.worker.admission import Admission
from core.worker.answering import Answering
from core.worker.cache_room import make_room
from core.worker.prompt_lookup import PromptLookup, may_be_proposed
from core.worker.prompt_reading import PromptReading
from core.worker.slots import ActiveRequest, AnswerConstraint, Slot, is_prefilling

if TYPE_CHECKING:
    from core.worker.adapter_reader import AdapterReader, ReadAdapter
    from core.worker.decode.logprobs import TokenLogprobs
    from core.worker.decode.steps import PendingTokens, Steps


class Scheduler:
    """Answers requests over the slots of `steps`; `emit` gets every event. Runs on the worker's main thread."""

    def __init__(
        self,
        steps: Steps,
        tokenizer: Tokenizer,
        end_tokens: frozenset[int],
        chunk_tokens: int,
        emit: Callable[[Event], None],
        adapters: AdapterReader | None = None,
    ) -> None:
        self._steps = steps
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens
        self._emit = emit
        self._slots = [Slot(index) for index in range(steps.num_slots)]
        self._token_bytes = TokenBytes(tokenizer)
        self._room = make_room(steps, self._slots)
        self._admission = Admission(steps, self._slots, self._room, end_tokens, self._token_bytes, adapters)
        self._prompts = PromptReading(steps, self._slots, self._room, chunk_tokens, self._token_bytes, self._told, emit)
        self._answers = Answering(steps, tokenizer, end_tokens, self._admission, emit)
        self._waiting = self._admission.waiting
        # The steps that were enqueued, and whose tokens each will bring.
        self._in_flight: deque[tuple[PendingTokens, list[tuple[Slot, ActiveRequest]]]] = deque()

    @property
    def is_idle(self) -> bool:
        return not (self._waiting or self._in_flight) and all(slot.request is None for slot in self._slots)

    @property
    def requests(self) -> list[int]:
        """The ids of the requests that wait or are at work."""
        busy = [slot.request for slot in self._slots if slot.request is not None]
        return [request.command.request for request in [*busy, *self._waiting]]

    def submit(
        self, command: Generate, constraint: AnswerConstraint | None = None, adapter: ReadAdapter | None = None
    ) -> None:
        """Queue a request, with the constraint that its grammar was made into, and its adapter. One that cannot be
        answered emits Failed at once, with its reason."""
        if isinstance(command.prompt, str):
            tokens = list(self._tokenizer.encode(printable(command.prompt), add_special_tokens=False).ids)
        else:
            tokens = list(command.prompt)
        # A context holds a prompt with its answer, which has a token at least unless it is read alone.
        limit = self._steps.context_tokens
        num_answer = 0 if command.options.is_prompt_alone else 1
        if not tokens:
            self._emit(Failed(command.request, EngineError("prompt_empty")))
        elif len(tokens) + num_answer > limit:
            self._emit(Failed(command.request, EngineError("prompt_too_long", tokens=len(tokens), limit=limit)))
        elif not 0 <= min(tokens) <= max(tokens) < self._steps.vocabulary:
            self._emit(Failed(command.request, EngineError("prompt_token", limit=self._steps.vocabulary - 1)))
        elif not all(0 <= token < self._steps.vocabulary for token, _ in command.options.logit_bias):
            self._emit(Failed(command.request, EngineError("logit_bias_token", limit=self._steps.vocabulary - 1)))
        else:
            request = self._make_request(command, tokens)
            request.adapter = adapter
            if constraint is not None:
                # A thought may be as it likes.
                constraint.is_active = not request.stream.is_thinking
                request.constraint = constraint
            self._waiting.add(request, command.client)

    def cancel(self, request: int) -> None:
        """End a request now, waiting or at work. Its text so far is sent before Finished."""
        for slot in self._slots:
            if slot.request is not None and slot.request.command.request == request:
                self._answers.finish(slot, "cancelled")
        for waiting in [one for one in self._waiting if one.command.request == request]:
            self._waiting.remove(waiting, waiting.command.client)
            self._emit(Finished(request, "cancelled", self._answers.stats(waiting)))

    def step(self) -> None:
        """Give free slots to waiting requests, prefill a chunk of some prompts, decode one token for each answer."""
        for request in self._admission.admit():
            self._emit(PromptStarted(request.command.request, request.num_prompt, request.num_reused))
        self._tell_paused()
        num_before = len(self._in_flight)
        if (read := self._prompts.read_chunks()) is not None:
            self._enqueue(*read)
        self._decode_tokens()
        # The newest step stays in flight, if this call enqueued one.
        num_kept = 1 if self._steps.runs_ahead and len(self._in_flight) > num_before else 0
        while len(self._in_flight) > num_kept:
            self._harvest(*self._in_flight.popleft())
        if self._in_flight:
            # While the GPU computes the step, grammars say what may come in it, now that its last tokens are known.
            self._in_flight[-1][0].draw_rest()

    def _tell_paused(self) -> None:
        """Tell those that wait for room in the cache since the last step, and those that go on. A text so far is sent
        before."""
        for slot in self._slots:
            request = slot.request
            if request is not None and slot.is_paused != request.is_told_paused:
                request.note_pause(slot.is_paused, time.perf_counter())
                self._answers.send_text(request)
                self._emit(Paused(request.command.request, slot.is_paused))

    def _make_request(self, command: Generate, tokens: list[int]) -> ActiveRequest:
        seed = command.sampling.seed
        seed = secrets.randbelow(MAX_SEED) if seed is None else seed
        return ActiveRequest(
            command=command,
            tokens=tokens,
            num_prompt=len(tokens),
            stream=self._answers.make_stream(command, tokens[-1:] if command.continues else [], command.thought),
            seed=seed,
            asked_s=time.perf_counter(),
            lookup=PromptLookup() if self._steps.max_verified and may_be_proposed(command) else None,
        )

    def _decode_tokens(self) -> None:
        decoding = [(slot, slot.request) for slot in self._slots if slot.request is not None and self._can_decode(slot)]
        if not decoding:
            return
        slot, request = decoding[0]
        if proposed := self._propose(request):
            request.num_proposed = len(proposed)
            verified = [request.tokens[-1], *proposed]
            self._enqueue(self._steps.verify(slot.index, verified, len(request.tokens) - 1), decoding)
        else:
            self._enqueue(self._steps.decode([slot.index for slot, _ in decoding]), decoding)

    def _speculates(self, request: ActiveRequest) -> bool:
        """Whether tokens are to be proposed for the answer, which is the only one at work: others wait for room, and no
        step in flight brings them a token."""
        if request.lookup is None or not request.lookup.is_ready(self._steps.verify_steps):
            return False
        for slot in self._slots:
            other = slot.request
            if other is not None and other is not request and (not slot.is_paused or other.num_in_flight):
                return False
        return True

    def _propose(self, request: ActiveRequest) -> list[int]:
        """Tokens that may follow an answer's last one, to be verified in one step; none where that is not worth it."""
        if request.num_in_flight or not request.has_drawn or not self._speculates(request):
            return []
        num_tokens, page_tokens = len(request.tokens), self._steps.page_tokens
        most = min(
            self._steps.max_verified - 1,
            request.command.sampling.max_new_tokens - request.num_sampled - 1,
            self._steps.context_tokens - num_tokens - 1,
        )
        if page_tokens:
            # No new page for tokens that may not come.
            most = min(most, -num_tokens % page_tokens)
        assert request.lookup is not None
        return request.lookup.propose(request.tokens, most)

    def _can_decode(self, slot: Slot) -> bool:
        """Whether the slot's answer needs another token, and there is room for the one before it."""
        request = slot.request
        if request is None or not self._wants_token(slot):
            return False
        return self._room.reserve(slot, len(request.tokens) + request.num_in_flight)

    def _wants_token(self, slot: Slot) -> bool:
        """Whether the slot's answer needs another token, counting those in flight."""
        request = slot.request
        if request is None or is_prefilling(slot):
            return False
        waits = request.waits_for_token or not self._steps.runs_ahead
        if request.num_in_flight and (waits or request.num_proposed or self._speculates(request)):
            return False
        will_sample = request.num_sampled + request.num_in_flight
        is_long_enough = will_sample >= request.command.sampling.max_new_tokens
        return not is_long_enough and len(request.tokens) + request.num_in_flight < self._steps.context_tokens

    def _enqueue(self, pending: PendingTokens, owners: list[tuple[Slot, ActiveRequest]]) -> None:
        self._in_flight.append((pending, owners))
        for _, request in owners:
            request.num_in_flight += 1

    def _harvest(self, pending: PendingTokens, owners: list[tuple[Slot, ActiveRequest]]) -> None:
        """Wait for a step's tokens and append them. A token whose request has left its slot meanwhile is dropped."""
        tokens = pending.wait()
        for _, request in owners:
            request.num_in_flight -= 1
        # Of tokens that were verified several may be one answer's.
        whose = owners * len(tokens) if len(owners) == 1 else owners
        for (slot, request), token, logprobs in zip(whose, tokens, pending.logprobs(), strict=True):
            if slot.request is request:
                if logprobs is not None:
                    request.unsent_tokens.append(self._told(logprobs))
                self._answers.append_token(slot, request, token)
        if len(owners) == 1:
            self._look_up(owners[0][1], len(tokens))

    def _look_up(self, request: ActiveRequest, num_drawn: int) -> None:
        """Let an answer's lookup know the tokens that a step has drawn for it alone."""
        num_proposed, request.num_proposed = request.num_proposed, 0
        if request.lookup is not None:
            request.lookup.follow(request.tokens)
            if num_proposed:
                request.lookup.judge(num_drawn, self._steps.verify_steps)

    def _told(self, logprobs: TokenLogprobs) -> TokenInfo:
        of = self._token_bytes.of
        chosen = TokenChance(logprobs.token, of(logprobs.token), logprobs.logprob)
        top = tuple(TokenChance(token, of(token), value) for token, value in logprobs.top)
        return TokenInfo(chosen, top, is_end=logprobs.token in self._end_tokens)
