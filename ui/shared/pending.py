"""An answer that a thread is looking up, as a page shows it: a moment's wait, then a line that watches for it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import streamlit as st

from core.common.background import Lookup, Work
from ui.shared.errors import show_error
from ui.shared.fragment import redraw_every
from ui.shared.i18n import tr
from ui.shared.resources import lookups

# So long a page waits itself: a near server answers in it, and nothing flashes.
MOMENT_S = 0.25
POLL_S = 0.4


def answer(key: Hashable, work: Work, waiting: str) -> Any:
    """What `work` gives, or None while it is on its way or where it failed, which is shown then."""
    lookup = lookups().get(key, work)
    if not lookup.wait(MOMENT_S):
        redraw_every(POLL_S, _watch, lookup, waiting)
        return None
    if lookup.error is not None:
        show_error(lookup.error)
        st.button(tr("find.again"), key=f"find_again_{key}", icon=":material/refresh:",
                  on_click=lookups().forget, args=(key,))  # fmt: skip
        return None
    return lookup.result


def failed(key: Hashable) -> str | None:
    """The key of the error of a question that failed."""
    lookup = lookups().known(key)
    return lookup.error.key if lookup and lookup.is_done and lookup.error else None


def _watch(lookup: Lookup, waiting: str) -> None:
    if lookup.is_done:
        st.rerun()
    st.caption(f":material/hourglass_top: {waiting}")
