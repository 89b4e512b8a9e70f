"""A part of a page that draws itself again, every so often or for its own widgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st


def redraw_every(seconds: float, draw: Callable[..., None], *args: Any) -> None:
    """Draw with `draw`, now and every `seconds` while the page is shown.

    It gets a container of its own: when its turn falls on the end of a run of the whole page, Streamlit 1.67 drops
    its elements for a moment, moves what follows in the same container up, and then draws over that.
    """
    with st.container():
        st.fragment(run_every=seconds)(draw)(*args)


def redraw_alone(draw: Callable[..., None], *args: Any) -> None:
    """Draw with `draw`; when one of its widgets is moved, only this part of the page is drawn again."""
    with st.container():
        st.fragment(draw)(*args)
