"""What a load promises of the KV cache: a whole context for every chat, or so many tokens for all of them; and in how
many bits keys and values are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.common.errors import InputError
from core.memory.pages import full_pages, pages_of

CacheBits = Literal[16, 8]


@dataclass(frozen=True, slots=True)
class CacheChoice:
    """pool_tokens: how many tokens all chats have together; None: every chat can be full.

    Where each slot has a row of its own, which is no page of a pool, every chat can be full whatever is chosen. bits:
    of an element of a key or value; of 8 they take half the memory, and answers differ a little.
    """

    pool_tokens: int | None = None
    bits: CacheBits = 16

    def num_pages(self, num_slots: int, context_tokens: int) -> int:
        """The pages of the pool: no more than chats can fill, and enough for one that is full and for a page each."""
        full = full_pages(num_slots, context_tokens)
        if self.pool_tokens is None:
            return full
        return min(full, max(pages_of(self.pool_tokens), pages_of(context_tokens), num_slots))

    def require_room(self, context_tokens: int) -> None:
        """Raise InputError where a chat of `context_tokens` would not fit by itself."""
        if self.pool_tokens is not None and self.pool_tokens < context_tokens:
            raise InputError("pool_range", asked=self.pool_tokens, context=context_tokens)


EVERY_CHAT_FULL = CacheChoice()
