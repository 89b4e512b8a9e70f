"""Which parts of which prompts a step reads. It needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from core.engine.protocol import Event, PromptScored, TokenChance, TokenInfo
from core.memory.layer_state import DELTA_TOKENS
from core.memory.plan import SCORED_TOKENS
from core.tokenizer.token_bytes import TokenBytes
from core.worker.cache_room import CacheRoom
from core.worker.decode.prompt_chunk import PromptChunk
from core.worker.page_pool import MIN_COPIED_TOKENS
from core.worker.slots import ActiveRequest, Slot, is_prefilling

if TYPE_CHECKING:
    from core.worker.decode.logprobs import TokenLogprobs
    from core.worker.decode.steps import PendingTokens, Steps

# The most tokens that a pass reads of one prompt while others wait for theirs or for their answers' next tokens.
SHARE_TOKENS = 512
# A pass of up to so many tokens takes about as long as one of fewer: the GPU reads the same weights.
CHEAP_TOKENS = 256
# A longer one takes as long as so many tokens beside those that it is made for.
PASS_TOKENS = 64

# Templates begin an answer's turn with fewer tokens. States are kept at multiples of a block of the delta rule.
TURN_TOKENS, STATE_TOKENS = 16, 64


class PromptReading:
    """Prefills the prompts of `slots` chunk by chunk, by turns. `chunk_tokens`: the most tokens that a pass reads.
    `told`: what an event says of a token."""

    def __init__(
        self,
        steps: Steps,
        slots: list[Slot],
        room: CacheRoom,
        chunk_tokens: int,
        token_bytes: TokenBytes,
        told: Callable[[TokenLogprobs], TokenInfo],
        emit: Callable[[Event], None],
    ) -> None:
        self._steps = steps
        self._slots = slots
        self._room = room
        self._chunk_tokens = chunk_tokens
        self._token_bytes = token_bytes
        self._told = told
        self._emit = emit
        self._next_slot = 0

    def read_chunks(self) -> tuple[PendingTokens, list[tuple[Slot, ActiveRequest]]] | None:
        """Prefill a chunk of one prompt, or of several in one pass; the tokens that prompts' last chunks sample, with
        whose they are."""
        # Round robin, from the slot after the last one that was prefilled.
        reading = sorted(
            filter(is_prefilling, self._slots), key=lambda one: (one.index - self._next_slot) % len(self._slots)
        )
        parts = list[_Part]()
        for slot in reading:
            self._room.catch_up(slot)
            if slot.is_paused:
                # It has no pages, and would take the place of others that have.
                continue
            part = self._rest_of(slot)
            if part.is_scored and parts:
                # It takes the next step.
                break
            if part.is_scored and self._room.reserve(slot, part.end):
                self._next_slot = slot.index + 1
                self._score(part)
                return None
            if not part.is_scored and part.begin < part.end and not any(one.covers(part) for one in parts):
                parts.append(part)
        most = self._chunk_tokens
        if any(slot.request is not None and not is_prefilling(slot) for slot in self._slots):
            # Their next tokens wait for the pass.
            most = min(most, SHARE_TOKENS * len(parts))
        lengths = [part.end - part.begin for part in parts]
        counts = share_pass(lengths, most, self._steps.max_chunks, self._steps.pass_sizes) if parts else []
        return self._read([replace(one, end=one.begin + count) for one, count in zip(parts, counts, strict=False)])

    def _rest_of(self, slot: Slot) -> _Part:
        """What is left to read of the slot's text, as far as it is read in one way."""
        request, begin = slot.request, len(slot.cached_tokens)
        assert request is not None
        if request.is_scored and not request.has_drawn:
            if begin < request.num_scored:
                # What was scored before its pages were lost.
                return _Part(slot, request, begin, request.num_scored)
            if begin < request.num_prompt - 1:
                return _Part(slot, request, begin, min(begin + SCORED_TOKENS, request.num_prompt - 1), True)
        return _Part(slot, request, begin, request.num_to_read)

    def _read(self, parts: Sequence[_Part]) -> tuple[PendingTokens, list[tuple[Slot, ActiveRequest]]] | None:
        """Prefill parts of some texts, of which each has room, in one pass."""
        chunks, owners = list[PromptChunk](), list[tuple[Slot, ActiveRequest]]()
        for part in parts:
            slot, request, begin, end = part.slot, part.request, part.begin, part.end
            is_last, kept_at = end == request.num_prompt and not request.has_drawn, 0
            if is_last and self._steps.has_states and (near := before_turn(begin, end)) < end:
                if self._steps.keeps_states and (near - begin) % DELTA_TOKENS == 0:
                    kept_at = near
                else:
                    end, is_last = near, False
            if not self._room.reserve(slot, end):
                continue
            self._next_slot = slot.index + 1
            chunks.append(PromptChunk(slot.index, request.tokens[begin:end], begin, is_last, kept_at))
            if is_last:
                owners.append((slot, request))
                if request.is_scored and request.num_prompt == 1:
                    self._emit(PromptScored(request.command.request, (self._first_told(request),)))
        pending = self._steps.prefill_chunks(chunks) if chunks else None
        for chunk in chunks:
            slot = self._slots[chunk.slot]
            slot.cached_tokens += chunk.tokens
            self._room.settle(slot)
        return None if pending is None else (pending, owners)

    def _score(self, part: _Part) -> None:
        """Prefill a part of a prompt and tell the log-probabilities of what follows each of its tokens."""
        slot, request, begin, end = part.slot, part.request, part.begin, part.end
        chunk, following = request.tokens[begin:end], request.tokens[begin + 1 : end + 1]
        scores = self._steps.score(slot.index, chunk, begin, following, request.command.options.logprobs or 0)
        request.num_scored = end
        first = [self._first_told(request)] if begin == 0 else []
        self._emit(PromptScored(request.command.request, (*first, *map(self._told, scores))))
        slot.cached_tokens += chunk
        self._room.settle(slot)

    def _first_told(self, request: ActiveRequest) -> TokenInfo:
        """A prompt's first token follows nothing by which it would have a chance."""
        token = request.tokens[0]
        return TokenInfo(TokenChance(token, self._token_bytes.of(token), None))


@dataclass(frozen=True, slots=True)
class _Part:
    """A request's tokens from `begin` to `end`, which a step may read. `is_scored`: for their log-probabilities."""

    slot: Slot
    request: ActiveRequest
    begin: int
    end: int
    is_scored: bool = False

    def covers(self, other: _Part) -> bool:
        """Whether this one reads half of what the other one would read with it, which then finds it in the cache."""
        end = other.begin + max(MIN_COPIED_TOKENS, min(other.end - other.begin, SHARE_TOKENS) // 2)
        return (
            not other.request.is_scored
            and self.begin <= other.begin
            and end <= min(self.end, other.end)
            and self.request.mark == other.request.mark
            # Most texts differ there already: long ones are seldom compared as a whole.
            and self.request.tokens[other.begin : end] == other.request.tokens[other.begin : end]
            and self.request.tokens[: other.begin] == other.request.tokens[: other.begin]
        )


def share_pass(lengths: Sequence[int], most: int, max_chunks: int, sizes: Sequence[int]) -> list[int]:
    """How many tokens a pass reads of each of the first prompts, `max_chunks` at most, of which `lengths` are left: up
    to `most` together. Each first gets up to SHARE_TOKENS, in order, and what is left over goes to the first again.
    sizes: Steps.pass_sizes."""
    lengths = lengths[:max_chunks]
    left = fill_pass(min(most, sum(lengths)), sizes)
    counts = [0] * len(lengths)
    for share in (SHARE_TOKENS, most):
        for place, length in enumerate(lengths):
            more = min(share, length - counts[place], left)
            counts[place] += more
            left -= more
    return [count for count in counts if count]


def fill_pass(num_tokens: int, sizes: Sequence[int]) -> int:
    """How many of `num_tokens` to read in one pass: all, or as many as fill one where the next larger one would be too
    empty. sizes: Steps.pass_sizes."""
    return _fastest(num_tokens, sizes)[0] if sizes else num_tokens


def _fastest(num_tokens: int, sizes: Sequence[int]) -> tuple[int, int]:
    """How many of `num_tokens` the first pass reads, and for how many tokens all passes take as long."""
    size = next(size for size in sizes if size >= num_tokens)
    whole = num_tokens, size + PASS_TOKENS
    full = max((one for one in sizes if one < num_tokens), default=0)
    if size <= CHEAP_TOKENS or not full:
        return whole
    split = full, full + PASS_TOKENS + _fastest(num_tokens - full, sizes)[1]
    return min(whole, split, key=lambda one: one[1])


def before_turn(begin: int, end: int) -> int:
    """Up to where a state is kept of a prompt's last tokens, from `begin` to `end`: in a chunk, or where one ends.

    The next prompt of the chat mostly shares all but the last few tokens, with which the answer's turn begins; an
    answer made anew shares them all and still needs one to read.
    """
    near = (end - TURN_TOKENS) // STATE_TOKENS * STATE_TOKENS
    return near if near > begin else end
