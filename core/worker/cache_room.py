"""Where in the KV cache a request's tokens lie, and which of them are there already. It needs no torch.

RowRoom: each slot has room for a whole context. PageRoom: slots take pages of a pool as they grow. Either way a
beginning that was read for one slot need not be read for another, except by models with recurrent layers: their states
take in a whole text and belong to one slot, so these share nothing across slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from core.worker.page_pool import MIN_COPIED_TOKENS, Holding, MissingPage, PagePool, common_prefix
from core.worker.slots import ActiveRequest, Slot

if TYPE_CHECKING:
    from core.worker.decode.steps import Steps

# For how much of its answer a request finds room, beside its text so far, before it is begun; and what part of a
# context that is at most.
RESERVE_TOKENS, RESERVE_SHARE = 256, 8


class CacheRoom(Protocol):
    """The room of all slots, as the engine's loop asks for it."""

    def resume(self) -> bool:
        """Let requests go on that wait for room. Whether none waits any longer: only then may others be admitted."""

    def has_room(self, request: ActiveRequest) -> bool:
        """Whether a request that waits for a slot could begin in a free one."""

    def place(self, free: Sequence[Slot], request: ActiveRequest) -> Slot:
        """The one of the `free` slots that a request is to have, which then holds what need not be read again."""

    def reserve(self, slot: Slot, num_tokens: int) -> bool:
        """Let the slot have room for `num_tokens` before a step that writes so many. Where it has none, it takes no
        part in this step."""

    def settle(self, slot: Slot) -> None:
        """Let others have what the slot has taken in by now."""

    def catch_up(self, slot: Slot) -> None:
        """Let the slot have what others have read of its prompt since it began. Before each chunk of its text: others
        may as well have taken the snapshot that its states were to go on from."""

    def leave(self, slot: Slot, is_sound: bool) -> None:
        """The slot's request ends. What it leaves is not used again unless it `is_sound`."""


def make_room(steps: Steps, slots: list[Slot]) -> CacheRoom:
    return PageRoom(steps, slots) if steps.page_tokens else RowRoom(steps, slots)


class RowRoom:
    """A row of the cache for each slot. What another slot holds is copied from its row, also while that is at work."""

    def __init__(self, steps: Steps, slots: list[Slot]) -> None:
        self._steps = steps
        self._slots = slots

    def resume(self) -> bool:
        return True

    def has_room(self, request: ActiveRequest) -> bool:
        return True

    def place(self, free: Sequence[Slot], request: ActiveRequest) -> Slot:
        source = self._best_source(request)
        slot = max(free, key=lambda slot: (self._reusable_tokens(slot, request), -len(slot.cached_tokens)))
        other, num_alike = min(free, key=lambda slot: len(slot.cached_tokens)), self._reusable_tokens(slot, request)
        num_lost = len(slot.cached_tokens) - num_alike
        if source is not None and MIN_COPIED_TOKENS <= num_alike < num_lost > 2 * len(other.cached_tokens):
            # Rather than to overwrite most of another chat, which can be copied from.
            slot = other
        num_reused = self._reusable_tokens(slot, request)
        slot.cached_tokens = slot.cached_tokens[:num_reused]
        slot.mark, request.num_reused = request.mark, num_reused
        self._copy(source, slot, request)
        return slot

    def _reusable_tokens(self, slot: Slot, request: ActiveRequest) -> int:
        return self._steps.reusable_tokens(slot.index, alike(slot, request))

    def _best_source(self, request: ActiveRequest) -> Slot | None:
        """The slot that holds most of the request's text, for others to copy."""
        if self._steps.has_states:
            return None
        return max(self._slots, key=lambda slot: alike(slot, request))

    def _copy(self, source: Slot | None, slot: Slot, request: ActiveRequest) -> None:
        """Take from `source` what it holds of a request's text beyond what the slot has."""
        begin = len(slot.cached_tokens)
        end = 0 if source is None or source is slot else alike(source, request)
        if source is not None and end - begin >= MIN_COPIED_TOKENS:
            self._steps.copy_tokens(source.index, slot.index, end)
            slot.cached_tokens += request.tokens[begin:end]
            request.num_reused += end - begin

    def reserve(self, slot: Slot, num_tokens: int) -> bool:
        return True

    def settle(self, slot: Slot) -> None:
        pass

    def catch_up(self, slot: Slot) -> None:
        if slot.request is None or slot.request.has_drawn:
            return
        num_lost = len(slot.cached_tokens) - self._steps.reusable_tokens(slot.index, len(slot.cached_tokens))
        if num_lost:
            del slot.cached_tokens[-num_lost:]
            slot.request.num_reused -= num_lost
        self._copy(self._best_source(slot.request), slot, slot.request)

    def leave(self, slot: Slot, is_sound: bool) -> None:
        slot.request = None
        if not is_sound:
            slot.cached_tokens = []


@dataclass(frozen=True, slots=True)
class _Refused:
    """A request that had no room when pages had been given back so often, and the first page that nobody had read for
    it. Nothing can have changed for it until pages are given back, or another one has read that page."""

    request: int
    num_releases: int
    missing: MissingPage | None

    def holds(self, request: ActiveRequest, pool: PagePool) -> bool:
        is_same = (self.request, self.num_releases) == (request.command.request, pool.num_releases)
        return is_same and (self.missing is None or not pool.has_come(self.missing))


class PageRoom:
    """Pages of one pool for all slots.

    A request is begun once there are pages for its prompt and RESERVE_TOKENS of its answer, and no other one waits for
    pages. If the pages then do not suffice for all that are at work, the one that began last stops: its pages are for
    the others, its tokens and what its next draw depends on stay. Once there is room again it reads the text that its
    pages lost, and goes on as if nothing had been. Each that began before it goes before it, and the pool holds a whole
    context at least, so the first always comes to its end: nobody waits for ever. Where there are pages for a whole
    context of every slot, nobody ever waits for them.
    """

    def __init__(self, steps: Steps, slots: list[Slot]) -> None:
        self._steps = steps
        self._slots = slots
        # Where states are kept of a text, its keys and values must be had exactly.
        self._pool = PagePool(steps.num_pages, steps.page_tokens, 1 if steps.has_states else MIN_COPIED_TOKENS)
        self._holdings: dict[int, Holding] = {}
        # Slots at work that had no room in the last step.
        self._starving: set[int] = set()
        self._num_begun = 0
        self._refused: _Refused | None = None

    def resume(self) -> bool:
        self._take_back()
        if self._starving:
            # What was taken back is for these.
            return False
        for slot in sorted(self._paused, key=_turn):
            request = slot.request
            assert request is not None
            if slot.index in self._holdings or not self._has_room(slot, request):
                return False
            slot.is_paused = False
            self._take(slot, request)
        return True

    @property
    def _paused(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.is_paused]

    def _lacks(self, slot: Slot | None, request: ActiveRequest) -> int:
        """How many pages are too few for the request's text and what it may write soon. slot: where its states are."""
        context = self._steps.context_tokens
        reserve = min(RESERVE_TOKENS, context // RESERVE_SHARE, request.command.sampling.max_new_tokens)
        wanted = min(len(request.tokens) + reserve, context)
        return self._pool.lacks(request.mark, self._usable(slot, request), wanted)

    def _usable(self, slot: Slot | None, request: ActiveRequest) -> Sequence[int]:
        """Those of the request's first tokens that it may take from pages. The last is always read again: its logits
        give the next token."""
        tokens = request.tokens[:-1]
        if request.is_scored and not request.has_drawn:
            tokens = tokens[: request.num_scored]
        if not self._steps.has_states:
            return tokens
        if slot is None or slot.mark != request.mark:
            return ()
        found = self._pool.num_found(request.mark, tokens)
        return tokens[: self._steps.reusable_tokens(slot.index, min(common_prefix(slot.cached_tokens, tokens), found))]

    def has_room(self, request: ActiveRequest) -> bool:
        return self._has_room(None, request)

    def _has_room(self, slot: Slot | None, request: ActiveRequest) -> bool:
        """slot: where its states are."""
        # Asked before each step, about a text that may be long.
        if self._refused is not None and self._refused.holds(request, self._pool):
            return False
        self._refused = None
        if not self._lacks(slot, request):
            return True
        missing = self._pool.first_missing(request.mark, self._usable(slot, request))
        self._refused = _Refused(request.command.request, self._pool.num_releases, missing)
        return False

    def place(self, free: Sequence[Slot], request: ActiveRequest) -> Slot:
        slot = free[0]
        if self._steps.has_states:
            slot = max(free, key=lambda slot: (len(self._usable(slot, request)), -len(slot.cached_tokens)))
        request.turn = self._num_begun
        self._num_begun += 1
        request.num_reused = self._take(slot, request)
        slot.mark = request.mark
        return slot

    def _take(self, slot: Slot, request: ActiveRequest) -> int:
        """Give the slot what there is of its request's text and pages for all of it; how many tokens there are."""
        tokens = self._usable(slot, request)
        taken = self._pool.take(request.mark, tokens)
        assert taken.num_tokens == len(tokens) or not self._steps.has_states, "states go on from where they are kept"
        if taken.copied is not None:
            self._steps.copy_tokens(*taken.copied, self._steps.page_tokens)
        self._holdings[slot.index] = taken.holding
        slot.cached_tokens = request.tokens[: taken.num_tokens]
        has_room = self._pool.grow(taken.holding, len(request.tokens))
        assert has_room, "a request was begun without room"
        self._write_table(slot)
        return taken.num_tokens

    def reserve(self, slot: Slot, num_tokens: int) -> bool:
        holding = self._holdings.get(slot.index)
        if slot.is_paused or holding is None:
            return False
        self.settle(slot)
        if not self._pool.grow(holding, num_tokens):
            self._starving.add(slot.index)
            self._stop_one()
            return False
        self._starving.discard(slot.index)
        self._write_table(slot)
        return True

    def _stop_one(self) -> None:
        """Let who began last stop, if nobody is about to give back pages. They are taken before the next step: in this
        one it may have a part already."""
        if all(slot.index not in self._holdings for slot in self._paused):
            at_work = [slot for slot in self._slots if slot.request is not None and not slot.is_paused]
            last = max(at_work, key=_turn)
            last.is_paused = True
            self._starving.discard(last.index)

    def _take_back(self) -> None:
        """Take the pages of those that stopped, once the tokens are known that steps in flight write to them."""
        for slot in self._paused:
            if slot.request is not None and not slot.request.num_in_flight and slot.index in self._holdings:
                self._pool.release(self._holdings.pop(slot.index), slot.cached_tokens)

    def settle(self, slot: Slot) -> None:
        if (holding := self._holdings.get(slot.index)) is not None:
            self._pool.settle(holding, slot.cached_tokens)

    def catch_up(self, slot: Slot) -> None:
        request, holding = slot.request, self._holdings.get(slot.index)
        if request is None or holding is None:
            return
        begin = len(slot.cached_tokens)
        if self._steps.reusable_tokens(slot.index, begin) < begin:
            self._begin_again(slot, request)
            return
        if self._steps.has_states or request.is_scored:
            return
        num_found = self._pool.catch_up(holding, request.tokens[:-1], begin)
        slot.cached_tokens += request.tokens[begin : begin + num_found]
        request.num_reused += 0 if request.has_drawn else num_found
        self._write_table(slot)

    def _begin_again(self, slot: Slot, request: ActiveRequest) -> None:
        """Go back to where a state is kept. The pages after it may be others', so these are taken anew."""
        self._pool.release(self._holdings.pop(slot.index), slot.cached_tokens)
        if self._lacks(slot, request):
            slot.is_paused = True
            self._starving.discard(slot.index)
            return
        num_tokens = self._take(slot, request)
        if not request.has_drawn:
            request.num_reused = min(request.num_reused, num_tokens)

    def _write_table(self, slot: Slot) -> None:
        holding = self._holdings[slot.index]
        if holding.has_changed:
            holding.has_changed = False
            self._steps.set_pages(slot.index, holding.pages)

    def leave(self, slot: Slot, is_sound: bool) -> None:
        holding = self._holdings.pop(slot.index, None)
        if holding is not None and is_sound:
            self._pool.release(holding, slot.cached_tokens)
        elif holding is not None:
            self._pool.forget(holding)
        self._starving.discard(slot.index)
        slot.request, slot.is_paused = None, False
        if not is_sound:
            slot.cached_tokens = []


def alike(slot: Slot, request: ActiveRequest) -> int:
    """How many of the first tokens of a request's text a slot holds. The prompt's last token is always read again: its
    logits give the answer's first token."""
    if request.is_scored or request.mark != slot.mark:
        return 0
    return min(common_prefix(slot.cached_tokens, request.tokens), request.num_prompt - 1)


def _turn(slot: Slot) -> int:
    assert slot.request is not None
    return slot.request.turn
