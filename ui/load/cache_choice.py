"""What a load promises to its chats, on Load model: a whole context for each, or so many tokens for all of them; and in
how many bits it keeps their keys and values."""

from __future__ import annotations

import streamlit as st

from core.library.last_model import last_load
from core.memory.cache_choice import EVERY_CHAT_FULL, CacheBits, CacheChoice
from core.memory.fit_report import FitReport
from core.memory.pages import PAGE_TOKENS
from ui.load.gauge import Verdict
from ui.shared.i18n import tr
from ui.shared.identity import drawn_last, key_of

# Every chat can be full; else how many contexts the tokens in all are worth.
EVERY_FULL = 0


def has_choice(report: Verdict, num_chats: int) -> bool:
    """Whether chats can share pages: on a CPU, and by plain steps, each has a row of its own."""
    return num_chats > 1 and isinstance(report, FitReport) and report.can_share


def promise_before(name: str) -> CacheChoice:
    """What was promised to the chats of the model's last load."""
    last = last_load(name)
    return EVERY_CHAT_FULL if last is None else last.cache


def draw_cache(name: str, context_tokens: int, num_chats: int, has_pool: bool) -> CacheChoice:
    bits: CacheBits = 8 if _draw_bits(name) else 16
    if not has_pool:
        return CacheChoice(bits=bits)
    contexts, kept_key = _choices(num_chats), _kept_key(name, num_chats)
    if kept_key not in st.session_state:
        before = promise_before(name).pool_tokens
        st.session_state[kept_key] = max(
            (one for one in contexts if before and one * context_tokens <= before), default=EVERY_FULL
        )
    kept = st.session_state[kept_key]
    labels = {one: _words(one, context_tokens, num_chats) for one in contexts}
    # A browser tells a choice by its words. Of those that come to the same tokens the first is offered; and as the
    # words name the context's tokens, each context has a widget of its own.
    offered = {words: one for one, words in reversed(labels.items())}
    shown = offered[labels[kept]]
    key = key_of(_name(name, num_chats), context_tokens, shown)
    st.selectbox(tr("gauge.promise"), sorted(offered.values()), key=key, format_func=labels.__getitem__,
                 help=tr("gauge.promise_help"), on_change=_keep, args=(name, num_chats, key, shown))  # fmt: skip
    return CacheChoice(_pool_tokens(kept, context_tokens), bits)


def _keep(name: str, num_chats: int, key: str, shown: int) -> None:
    """Keep what the widget with this key shows by now, if that is another choice than it was drawn with."""
    chosen = st.session_state.get(key)
    if chosen != shown and chosen in _choices(num_chats):
        st.session_state[_kept_key(name, num_chats)] = chosen


def _draw_bits(name: str) -> bool:
    is_before = promise_before(name).bits == 8
    return st.toggle(tr("gauge.cache_bits"), is_before, key=_bits_key(name), help=tr("gauge.cache_bits_help"),
                     persist_state="session")  # fmt: skip


def cache_now(name: str, context_tokens: int, num_chats: int, drawn: CacheChoice) -> CacheChoice:
    """What is chosen now, in a callback; `drawn` is what it was when the page was drawn."""
    if (last := drawn_last(_name(name, num_chats))) is not None:
        _keep(name, num_chats, last.key, last.value)  # Its own callback may come after the one that asks.
    chosen, is_8_bit = st.session_state.get(_kept_key(name, num_chats)), st.session_state.get(_bits_key(name))
    pool_tokens = drawn.pool_tokens if chosen is None else _pool_tokens(chosen, context_tokens)
    return CacheChoice(pool_tokens, drawn.bits if is_8_bit is None else 8 if is_8_bit else 16)


def _choices(num_chats: int) -> list[int]:
    """Powers of two below the number of chats."""
    return [EVERY_FULL, *(1 << power for power in range((num_chats - 1).bit_length()))]


def _pool_tokens(contexts: int, context_tokens: int) -> int | None:
    return contexts * context_tokens or None


def _words(contexts: int, context_tokens: int, num_chats: int) -> str:
    if contexts == EVERY_FULL:
        return tr("gauge.every_full")
    # As the verdict counts them: whole pages, one for each chat at least.
    num_pages = CacheChoice(_pool_tokens(contexts, context_tokens)).num_pages(num_chats, context_tokens)
    return tr("gauge.in_all", tokens=f"{num_pages * PAGE_TOKENS:,}")


def _bits_key(name: str) -> str:
    return f"gauge_bits_{name}"


def _name(name: str, num_chats: int) -> str:
    return f"gauge_pool_{num_chats}_{name}"


def _kept_key(name: str, num_chats: int) -> str:
    return f"kept_pool_{num_chats}_{name}"
