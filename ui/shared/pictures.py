"""How pictures look on every page."""

from __future__ import annotations

import streamlit as st

# All pictures are faces: on a large display, Streamlit's tool for the full screen only makes small ones blurred.
STYLE = """<style>
[data-testid="stFullScreenFrame"]:has([data-testid="stImage"]) [data-testid="stElementToolbar"] { display: none; }
</style>"""


def hide_picture_tools() -> None:
    """For Home.py, around every page."""
    st.html(STYLE)
