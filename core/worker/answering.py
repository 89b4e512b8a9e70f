"""What becomes of a token that an answer got: its text, and the answer's end. It needs no torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from core.common.errors import EngineError
from core.common.panics import panics_as_errors, why_of
from core.engine.detokenize import TextStream, special_in
from core.engine.protocol import AnswerStats, Event, Failed, Finished, Generate, Reason, TextChunk
from core.engine.thought import ThoughtRules, ThoughtSplitter
from core.engine.thought_formats import ThoughtFormat
from core.worker.admission import Admission
from core.worker.slots import ActiveRequest, AnswerConstraint, Slot, count_tokens_ahead

if TYPE_CHECKING:
    from core.worker.decode.steps import Steps

# Text is sent at most this often: faster than a page shows it, slower than a fast GPU decodes it.
FLUSH_S = 0.03


class Answering:
    """Writes down the answers of the slots of `steps`, and emits what there is to tell of them."""

    def __init__(
        self,
        steps: Steps,
        tokenizer: Tokenizer,
        end_tokens: frozenset[int],
        admission: Admission,
        emit: Callable[[Event], None],
    ) -> None:
        self._steps = steps
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens
        self._admission = admission
        self._emit = emit
        self._shown: dict[ThoughtFormat, dict[int, str]] = {}

    def make_stream(
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

    def append_token(self, slot: Slot, request: ActiveRequest, token: int | None) -> None:
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
            self.finish(slot, "end")
            return
        if not self._decode_text(slot, request, lambda: request.stream.push(token)):
            return
        if constraint is not None and constraint.is_active and constraint.is_over:
            self.finish(slot, "end")
            return
        if constraint is not None and not request.stream.is_thinking:
            constraint.is_active = True
        is_over_budget = self._counts_thought(request)
        if request.stream.stopped:
            self.finish(slot, "stop")
        elif request.num_sampled >= sampling.max_new_tokens:
            self.finish(slot, "length")
        elif len(request.tokens) >= self._steps.context_tokens:
            self.finish(slot, "context")
        elif is_over_budget:
            self._end_thought(slot, request)
        elif request.num_sampled == 1 or time.perf_counter() - request.sent_s >= FLUSH_S:
            self.send_text(request)

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
            self.finish(slot, "context" if len(tokens) >= self._steps.context_tokens else "length")
            return
        count_tokens_ahead(slot)
        slot.request = replace(
            request,
            tokens=tokens,
            num_prompt=len(tokens),
            num_earlier=num_earlier,
            stream=self.make_stream(request.command, tokens[-1:], None, num_earlier),
            unsent=request.unsent + closing,
            num_in_flight=0,
            num_proposed=0,
        )
        self.send_text(slot.request)
        if request.constraint is not None:
            request.constraint.is_active = True
        self._admission.reset_slot(slot, slot.request)

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
        request = slot.request
        assert request is not None
        # Keys and values that led to what is no number are not used again.
        self._admission.room.leave(slot, is_sound=error.key != "not_a_number")
        self.send_text(request)
        self._emit(Failed(request.command.request, error))

    def send_text(self, request: ActiveRequest) -> None:
        if request.unsent or request.num_sampled > request.num_reported:
            tokens, request.unsent_tokens = tuple(request.unsent_tokens), []
            self._emit(TextChunk(request.command.request, request.unsent, request.num_sampled, tokens))
        request.unsent, request.sent_s, request.num_reported = "", time.perf_counter(), request.num_sampled

    def finish(self, slot: Slot, reason: Reason) -> None:
        request = slot.request
        assert request is not None
        if not request.stream.stopped and not self._decode_text(slot, request, request.stream.flush):
            return
        count_tokens_ahead(slot)
        self._admission.room.leave(slot, is_sound=True)
        self.send_text(request)
        stop = request.stream.stop if reason == "stop" else ""
        self._emit(Finished(request.command.request, reason, self.stats(request), stop))

    def stats(self, request: ActiveRequest) -> AnswerStats:
        now = time.perf_counter()
        began = request.began_s or now
        first = request.first_token_s or now
        return AnswerStats(
            prompt_tokens=len(request.tokens) - request.num_sampled,
            reused_tokens=request.num_reused,
            num_tokens=request.num_sampled,
            queued_s=began - request.asked_s,
            prefill_s=first - began,
            decode_s=request.decode_s(now),
            seed=request.seed,
        )


def _judge(constraint: AnswerConstraint, token: int) -> EngineError | None:
    """Go on in a grammar with `token`; what to say where it cannot."""
    if constraint.error is None:
        constraint.accept(token)
    return constraint.error
