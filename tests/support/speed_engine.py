"""An engine for benchmarks that needs no model: its speeds are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.engine import ONE_BY_ONE
from benchmarks.measuring import Decoded
from benchmarks.prompts import Prompts
from core.engine.request_options import PLAIN, AdapterUse
from core.memory.adapter_room import NO_ROOM, AdapterRoom
from core.memory.cache_choice import EVERY_CHAT_FULL, CacheChoice


class FakeEngine:
    """Writes 100 tokens a second in each chat, and reads a token in a millisecond."""

    def __init__(self, prompts: Prompts) -> None:
        self.adapters: Sequence[AdapterUse] = ()
        self.asked = PLAIN
        self.loads: list[tuple[int, int, AdapterRoom, CacheChoice]] = []
        self.is_closed = False

    def load(
        self,
        folder: Path,
        context_tokens: int,
        num_chats: int,
        kernel: str | None = None,
        adapters: AdapterRoom = NO_ROOM,
        cache: CacheChoice = EVERY_CHAT_FULL,
    ) -> float:
        self.loads.append((context_tokens, num_chats, adapters, cache))
        return 1.0

    def first_tokens_s(self, num_chats: int, num_tokens: int) -> float:
        return num_chats * num_tokens / 1000

    def decode(self, num_chats: int, prompt_tokens: int, new_tokens: int) -> Decoded:
        assert self.asked == ONE_BY_ONE
        return Decoded(100.0 * num_chats, num_chats * new_tokens, True)

    def close(self) -> None:
        self.is_closed = True
