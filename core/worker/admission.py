"""Which request gets which slot, and what the slot is told of it. It needs no torch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from core.engine.fair_queue import FairQueue
from core.tokenizer.token_bytes import TokenBytes
from core.worker.cache_room import CacheRoom
from core.worker.decode.draw_rules import DrawRules
from core.worker.slots import ActiveRequest, Slot

if TYPE_CHECKING:
    from core.worker.adapter_reader import AdapterReader, Version
    from core.worker.decode.steps import Steps


class Admission:
    """Gives the slots of `steps` to requests. `waiting`: those that wait for one, in the order of their turns."""

    def __init__(
        self,
        steps: Steps,
        slots: list[Slot],
        room: CacheRoom,
        end_tokens: frozenset[int],
        token_bytes: TokenBytes,
        adapters: AdapterReader | None,
    ) -> None:
        self.waiting: FairQueue[ActiveRequest] = FairQueue()
        self.room = room
        self._steps = steps
        self._slots = slots
        self._end_tokens = end_tokens
        self._token_bytes = token_bytes
        self._adapters = adapters

    def admit(self) -> list[ActiveRequest]:
        """Give free slots to waiting requests, and return those requests. One that has no room in the cache lets nobody
        past: others would keep it waiting for ever."""
        admitted: list[ActiveRequest] = []
        free = [slot for slot in self._slots if slot.request is None]
        has_room = self.room.resume()

        def is_ready(request: ActiveRequest) -> bool:
            nonlocal has_room
            if not has_room or not self._has_place(request):
                return False
            has_room = self.room.has_room(request)
            return has_room

        while free and (request := self.waiting.take_ready(is_ready)) is not None:
            slot = self.room.place(free, request)
            free.remove(slot)
            self._place_adapter(slot, request)
            slot.request = request
            self.reset_slot(slot, request)
            request.began_s = request.sent_s = time.perf_counter()
            admitted.append(request)
        return admitted

    def reset_slot(self, slot: Slot, request: ActiveRequest) -> None:
        """Tell the steps what the slot's next draws depend on."""
        sampling, breakers = request.command.sampling, request.command.sampling.dry_sequence_breakers

        def breaks(token: int) -> bool:
            text = self._token_bytes.of(token)
            return any(word.encode() in text for word in breakers)

        rules = DrawRules(request.command.options, request.num_earlier, self._end_tokens, request.constraint, breaks)
        self._steps.reset_slot(slot.index, sampling, request.seed, request.tokens, rules)

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
