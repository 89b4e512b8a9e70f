"""The engine's loop: prefill and decode over all slots, one small step at a time. It needs no torch.

A step prefills one chunk of one prompt and decodes one token for every running answer, so that nobody waits for
somebody else's long prompt. Requests beyond the slots wait for their turn (core/engine/fair_queue.py). Captured steps
run ahead: the next step is enqueued before the last one's tokens are read. Tokens after an answer's end are dropped.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from tokenizers import Tokenizer

from core.common.errors import EngineError
from core.common.panics import panics_as_errors, why_of
from core.common.values import printable
from core.engine.detokenize import TextStream, special_in
from core.engine.fair_queue import FairQueue
from core.engine.protocol import (
    AnswerStats,
    Event,
    Failed,
    Finished,
    Generate,
    PromptScored,
    PromptStarted,
    Reason,
    TextChunk,
    TokenChance,
    TokenInfo,
)
from core.engine.sampling_params import MAX_SEED
from core.engine.thought import ThoughtFormat, ThoughtRules, ThoughtSplitter
from core.tokenizer.token_bytes import TokenBytes
from core.worker.decode.draw_rules import DrawRules, TokenConstraint

if TYPE_CHECKING:
    from core.worker.adapter_reader import AdapterReader, ReadAdapter, Version
    from core.worker.decode.logprobs import TokenLogprobs
    from core.worker.decode.steps import PendingTokens, Steps

# Text is sent at most this often: faster than a page shows it, slower than a fast GPU decodes it.
FLUSH_S = 0.03
# How many tokens of a prompt are scored in a step. A GPU scores them one by one, and others wait meanwhile.
SCORED_TOKENS = 16
# Templates begin an answer's turn with fewer tokens. States are kept at multiples of a block of the delta rule.
TURN_TOKENS, STATE_TOKENS = 16, 64


class AnswerConstraint(TokenConstraint, Protocol):
    """An answer's grammar, see core/worker/constraints.py."""

    def accept(self, token: int) -> None: ...

    @property
    def is_over(self) -> bool: ...

    @property
    def error(self) -> EngineError | None: ...


@dataclass(slots=True)
class Slot:
    """One row of the layers' states. `cached_tokens`: the tokens that it has taken in, as far as they are known, with
    the adapter of `mark`."""

    index: int
    cached_tokens: list[int] = field(default_factory=list)
    mark: object = None
    request: ActiveRequest | None = None


@dataclass(slots=True)
class ActiveRequest:
    """One request at work. `tokens`: the prompt and the sampled tokens; the slot's cache holds a prefix of them.

    After a thought was ended, `num_prompt` of them are prefilled, the answer so far among them.
    """

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
    # Tokens that events have reported: some give no text by themselves.
    num_reported: int = 0
    # Tokens that were enqueued and not read yet.
    num_in_flight: int = 0
    # How many of the answer's tokens are a thought's.
    num_thought: int = 0
    # The answer's tokens in the prompt, which has them after a thought was ended.
    num_earlier: int = 0
    # With their log-probabilities, and not sent yet.
    unsent_tokens: list[TokenInfo] = field(default_factory=list)
    constraint: AnswerConstraint | None = None
    adapter: ReadAdapter | None = None

    @property
    def mark(self) -> object:
        """What its keys and values depend on beside its tokens."""
        return None if self.adapter is None else self.adapter.mark

    @property
    def num_sampled(self) -> int:
        return len(self.tokens) - self.num_prompt + self.num_earlier

    @property
    def waits_for_token(self) -> bool:
        """Whether the next token can be asked for only when the last one is known: the host has a part in the draw."""
        return self.command.sampling.is_slow or self.command.options.grammar is not None

    @property
    def is_scored(self) -> bool:
        """Whether the log-probabilities of its prompt are asked for."""
        return self.command.options.prompt_logprobs


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
        self._adapters = adapters
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens
        self._chunk_tokens = chunk_tokens
        self._emit = emit
        self._slots = [Slot(index) for index in range(steps.num_slots)]
        self._waiting: FairQueue[ActiveRequest] = FairQueue()
        self._next_prefill = 0
        self._shown: dict[ThoughtFormat, dict[int, str]] = {}
        self._token_bytes = TokenBytes(tokenizer)
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
        limit = self._steps.context_tokens
        if not tokens:
            self._emit(Failed(command.request, EngineError("prompt_empty")))
        elif len(tokens) >= limit:
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
                self._finish(slot, "cancelled")
        for waiting in [one for one in self._waiting if one.command.request == request]:
            self._waiting.remove(waiting, waiting.command.client)
            self._emit(Finished(request, "cancelled", self._stats(waiting)))

    def step(self) -> None:
        """Give free slots to waiting requests, prefill one chunk of one prompt, decode one token for each answer."""
        self._admit()
        num_before = len(self._in_flight)
        self._prefill_chunk()
        self._decode_tokens()
        # The newest step stays in flight, if this call enqueued one.
        num_kept = 1 if self._steps.runs_ahead and len(self._in_flight) > num_before else 0
        while len(self._in_flight) > num_kept:
            self._harvest(*self._in_flight.popleft())

    def _make_request(self, command: Generate, tokens: list[int]) -> ActiveRequest:
        seed = command.sampling.seed
        seed = secrets.randbelow(MAX_SEED) if seed is None else seed
        return ActiveRequest(
            command=command,
            tokens=tokens,
            num_prompt=len(tokens),
            stream=self._make_stream(command, tokens[-1:] if command.continues else [], command.thought),
            seed=seed,
            asked_s=time.perf_counter(),
        )

    def _make_stream(
        self, command: Generate, before: list[int], rules: ThoughtRules | None, num_earlier: int = 0
    ) -> TextStream:
        shown: dict[int, str] = {}
        if command.thought is not None:
            format = command.thought.format
            if format not in self._shown:
                self._shown[format] = special_in(self._tokenizer, format.marks)
            shown = self._shown[format]
        if command.options.shown:
            shown = shown | special_in(self._tokenizer, command.options.shown)
        splitter = ThoughtSplitter(rules) if rules is not None else None
        return TextStream(
            self._tokenizer, command.sampling.stop, before, shown, splitter, command.options.min_tokens - num_earlier
        )

    def _admit(self) -> None:
        free = [slot for slot in self._slots if slot.request is None]
        while free and (request := self._waiting.take_ready(self._has_place)) is not None:
            slot = max(free, key=lambda slot: (self._reusable_tokens(slot, request), -len(slot.cached_tokens)))
            free.remove(slot)
            request.num_reused = self._reusable_tokens(slot, request)
            slot.cached_tokens = slot.cached_tokens[: request.num_reused]
            slot.mark = request.mark
            self._place_adapter(slot, request)
            slot.request = request
            self._reset_slot(slot, request)
            request.began_s = request.sent_s = time.perf_counter()
            self._emit(PromptStarted(request.command.request, request.num_prompt, request.num_reused))

    def _reusable_tokens(self, slot: Slot, request: ActiveRequest) -> int:
        if request.is_scored or request.mark != slot.mark:
            return 0
        # The prompt's last token is always prefilled again: its logits give the answer's first token.
        shared = min(common_prefix(slot.cached_tokens, request.tokens), len(request.tokens) - 1)
        return self._steps.reusable_tokens(slot.index, shared)

    def _has_place(self, request: ActiveRequest) -> bool:
        """Whether the request's adapter, if it has one, can be in the model now."""
        if request.adapter is None or self._adapters is None:
            return True
        return self._adapters.has_place(request.adapter, self._adapters_at_work())

    def _adapters_at_work(self) -> list[Version]:
        busy = [slot.request.adapter for slot in self._slots if slot.request is not None]
        return [adapter.version for adapter in busy if adapter is not None]

    def _place_adapter(self, slot: Slot, request: ActiveRequest) -> None:
        if self._adapters is None:
            return
        adapter = request.adapter
        place = None if adapter is None else self._adapters.hold(adapter, self._adapters_at_work())
        self._adapters.set_slot(slot.index, place, 1.0 if adapter is None else adapter.weight)

    def _reset_slot(self, slot: Slot, request: ActiveRequest) -> None:
        sampling, breakers = request.command.sampling, request.command.sampling.dry_sequence_breakers

        def breaks(token: int) -> bool:
            text = self._token_bytes.of(token)
            return any(word.encode() in text for word in breakers)

        rules = DrawRules(request.command.options, request.num_earlier, self._end_tokens, request.constraint, breaks)
        self._steps.reset_slot(slot.index, sampling, request.seed, request.tokens, rules)

    def _prefill_chunk(self) -> None:
        prefilling = [slot for slot in self._slots if slot.request and is_prefilling(slot)]
        if not prefilling:
            return
        # Round robin, from the slot after the last one that was prefilled.
        slot = min(prefilling, key=lambda slot: (slot.index - self._next_prefill) % len(self._slots))
        self._next_prefill = slot.index + 1
        request = slot.request
        assert request is not None
        begin = len(slot.cached_tokens)
        if request.is_scored and begin < request.num_prompt - 1:
            self._score_chunk(slot, request)
            return
        end = min(begin + self._chunk_tokens, request.num_prompt)
        if self._steps.has_states and end == request.num_prompt:
            end = before_turn(begin, end)
        chunk = request.tokens[begin:end]
        pending = self._steps.prefill(slot.index, chunk, begin, end == request.num_prompt)
        slot.cached_tokens += chunk
        if pending is not None:
            self._enqueue(pending, [(slot, request)])

    def _score_chunk(self, slot: Slot, request: ActiveRequest) -> None:
        """Prefill a chunk of a prompt and tell the log-probabilities of what follows each of its tokens."""
        begin = len(slot.cached_tokens)
        chunk = request.tokens[begin : min(begin + SCORED_TOKENS, request.num_prompt - 1)]
        following = request.tokens[begin + 1 : begin + 1 + len(chunk)]
        scores = self._steps.score(slot.index, chunk, begin, following, request.command.options.logprobs or 0)
        slot.cached_tokens += chunk
        first = [TokenInfo(TokenChance(chunk[0], self._token_bytes.of(chunk[0]), None))] if begin == 0 else []
        self._emit(PromptScored(request.command.request, (*first, *map(self._told, scores))))

    def _decode_tokens(self) -> None:
        decoding = [
            (slot, slot.request) for slot in self._slots if slot.request is not None and self._wants_token(slot)
        ]
        if decoding:
            self._enqueue(self._steps.decode([slot.index for slot, _ in decoding]), decoding)

    def _wants_token(self, slot: Slot) -> bool:
        """Whether the slot's answer needs another token, counting those in flight."""
        request = slot.request
        if request is None or is_prefilling(slot):
            return False
        if request.num_in_flight and (request.waits_for_token or not self._steps.runs_ahead):
            return False
        will_sample = request.num_sampled + request.num_in_flight
        is_long_enough = will_sample >= request.command.sampling.max_new_tokens
        return not is_long_enough and len(request.tokens) + request.num_in_flight <= self._steps.context_tokens

    def _enqueue(self, pending: PendingTokens, owners: list[tuple[Slot, ActiveRequest]]) -> None:
        self._in_flight.append((pending, owners))
        for _, request in owners:
            request.num_in_flight += 1

    def _harvest(self, pending: PendingTokens, owners: list[tuple[Slot, ActiveRequest]]) -> None:
        """Wait for a step's tokens and append them. A token whose request has left its slot meanwhile is dropped."""
        tokens = pending.wait()
        for (slot, request), token, logprobs in zip(owners, tokens, pending.logprobs(), strict=True):
            request.num_in_flight -= 1
            if slot.request is request:
                if logprobs is not None:
                    request.unsent_tokens.append(self._told(logprobs))
                self._append_token(slot, request, token)

    def _told(self, logprobs: TokenLogprobs) -> TokenInfo:
        of = self._token_bytes.of
        chosen = TokenChance(logprobs.token, of(logprobs.token), logprobs.logprob)
        top = tuple(TokenChance(token, of(token), value) for token, value in logprobs.top)
        return TokenInfo(chosen, top, is_end=logprobs.token in self._end_tokens)

    def _append_token(self, slot: Slot, request: ActiveRequest, token: int | None) -> None:
        """Append a token to a slot's answer, send its text, and end the answer where it ends."""
        sampling = request.command.sampling
        if token is None:
            self._fail(slot, EngineError("not_a_number"))
            return
        if len(request.tokens) == request.num_prompt:
            request.first_token_s = request.first_token_s or time.perf_counter()
        else:
            # The pass that sampled this token has written the one before into the cache.
            slot.cached_tokens.append(request.tokens[-1])
        request.tokens.append(token)
        constraint = request.constraint
        if constraint is not None and constraint.is_active and (error := _judge(constraint, token)) is not None:
            self._fail(slot, error)
            return
        if token in self._end_tokens:
            self._finish(slot, "end")
            return
        if not self._decode_text(slot, request, lambda: request.stream.push(token)):
            return
        if constraint is not None and constraint.is_active and constraint.is_over:
            self._finish(slot, "end")
            return
        if constraint is not None and not request.stream.is_thinking:
            constraint.is_active = True
        is_over_budget = self._counts_thought(request)
        if request.stream.stopped:
            self._finish(slot, "stop")
        elif request.num_sampled >= sampling.max_new_tokens:
            self._finish(slot, "length")
        elif len(slot.cached_tokens) >= self._steps.context_tokens:
            self._finish(slot, "context")
        elif is_over_budget:
            self._end_thought(slot, request)
        elif request.num_sampled == 1 or time.perf_counter() - request.sent_s >= FLUSH_S:
            self._send_text(request)

    def _counts_thought(self, request: ActiveRequest) -> bool:
        """Count the newest token where it is the thought's. Whether that was the last one of the thought's budget."""
        rules = request.command.thought
        if rules is None or rules.budget_tokens is None or not request.stream.is_thinking:
            return False
        request.num_thought += 1
        return request.num_thought >= rules.budget_tokens

    def _end_thought(self, slot: Slot, request: ActiveRequest) -> None:
        """End a thought with its mark, and let the answer follow: what was thought and the mark are prefilled.

        Tokens in flight are dropped with the request that they were for.
        """
        if not self._decode_text(slot, request, request.stream.flush):
            return
        closing = request.stream.closing
        tokens = [*request.tokens, *self._tokenizer.encode(closing, add_special_tokens=False).ids]
        num_earlier = request.num_sampled + len(tokens) - len(request.tokens)
        if len(tokens) >= self._steps.context_tokens or num_earlier >= request.command.sampling.max_new_tokens:
            self._finish(slot, "context" if len(tokens) >= self._steps.context_tokens else "length")
            return
        count_tokens_ahead(slot)
        slot.request = replace(
            request,
            tokens=tokens,
            num_prompt=len(tokens),
            num_earlier=num_earlier,
            stream=self._make_stream(request.command, tokens[-1:], None, num_earlier),
            unsent=request.unsent + closing,
            num_in_flight=0,
        )
        self._send_text(slot.request)
        if request.constraint is not None:
            request.constraint.is_active = True
        self._reset_slot(slot, slot.request)

    def _decode_text(self, slot: Slot, request: ActiveRequest, decode: Callable[[], str]) -> bool:
        """Append the text that `decode` gives. False where the tokenizer fails, which ends this answer alone."""
        try:
            with panics_as_errors():
                request.unsent += decode()
                return True
        except Exception as error:  # The tokenizer library raises bare exceptions, and panics.
            self._fail(slot, EngineError("tokenizer_decode", why=why_of(error)))
            return False

    def _fail(self, slot: Slot, error: EngineError) -> None:
        request, slot.request, slot.cached_tokens = slot.request, None, []
        assert request is not None
        self._send_text(request)
        self._emit(Failed(request.command.request, error))

    def _send_text(self, request: ActiveRequest) -> None:
        if request.unsent or request.num_sampled > request.num_reported:
            tokens, request.unsent_tokens = tuple(request.unsent_tokens), []
            self._emit(TextChunk(request.command.request, request.unsent, request.num_sampled, tokens))
        request.unsent, request.sent_s, request.num_reported = "", time.perf_counter(), request.num_sampled

    def _finish(self, slot: Slot, reason: Reason) -> None:
        request = slot.request
        assert request is not None
        if not request.stream.stopped and not self._decode_text(slot, request, request.stream.flush):
            return
        count_tokens_ahead(slot)
        slot.request = None
        self._send_text(request)
        stop = request.stream.stop if reason == "stop" else ""
        self._emit(Finished(request.command.request, reason, self._stats(request), stop))

    def _stats(self, request: ActiveRequest) -> AnswerStats:
        now = time.perf_counter()
        began = request.began_s or now
        first = request.first_token_s or now
        return AnswerStats(
            prompt_tokens=len(request.tokens) - request.num_sampled,
            reused_tokens=request.num_reused,
            num_tokens=request.num_sampled,
            queued_s=began - request.asked_s,
            prefill_s=first - began,
            decode_s=now - first,
            seed=request.seed,
        )


def _judge(constraint: AnswerConstraint, token: int) -> EngineError | None:
    """Go on in a grammar with `token`; what to say where it cannot."""
    if constraint.error is None:
        constraint.accept(token)
    return constraint.error


def is_prefilling(slot: Slot) -> bool:
    """Whether a part of the slot's prompt is still to be prefilled."""
    return slot.request is not None and len(slot.cached_tokens) < slot.request.num_prompt


def count_tokens_ahead(slot: Slot) -> None:
    """Count what the slot takes in of an answer that ends: a step in flight reads its last token, though what that step
    samples is dropped."""
    request = slot.request
    assert request is not None
    if request.num_in_flight and not is_prefilling(slot) and len(request.tokens) > request.num_prompt:
        slot.cached_tokens = request.tokens[:]


def before_turn(begin: int, end: int) -> int:
    """Where to end the chunk before a prompt's last one, from `begin` to `end`: a state is kept there.

    The next prompt of the chat mostly shares all but the last few tokens, with which the answer's turn begins; an
    answer made anew shares them all and still needs one to read.
    """
    near = (end - TURN_TOKENS) // STATE_TOKENS * STATE_TOKENS
    return near if near > begin else end


def common_prefix(one: list[int], other: list[int]) -> int:
    """How many first tokens two lists share."""
    shared = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        shared += 1
    return shared
