"""Pages of the KV cache: blocks of columns that slots take from one pool."""

from __future__ import annotations

# Columns of a page: what a block of the attention kernels takes at a time, so that none of its tiles straddles pages.
PAGE_TOKENS = 64


def pages_of(num_tokens: int) -> int:
    """How many pages hold so many tokens."""
    return -(-num_tokens // PAGE_TOKENS)


def full_pages(num_slots: int, context_tokens: int) -> int:
    """The pages with which every slot can be full."""
    return num_slots * pages_of(context_tokens)


def table_row(context_tokens: int) -> int:
    """Entries of a slot's row in the page table: one column more than the context has, which nobody reads."""
    return pages_of(context_tokens + 1)
