"""A part of a page that is drawn again by itself, at intervals or for its own widgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import streamlit as st


def redraw_every(seconds: float, draw: Callable[..., None], *args: Any) -> None:
    """Draw with `draw`, now and every `seconds` while the page is shown.

    The part gets a container of its own. Where it is drawn again just as a run of the whole page ends, Streamlit 1.67
    drops its elements for a moment, moves up what follows in the same container, and then draws over that.
    """
    with st.container():
        st.fragment(run_every=seconds)(draw)(*args)


def redraw_alone(draw: Callable[..., None], *args: Any, width: Literal["stretch", "content"] = "stretch") -> None:
    """Draw with `draw`; a change of one of its widgets draws only this part of the page again."""
    with st.container(width=width):
        st.fragment(draw)(*args)
