"""Buttons that show a picture alone, and are called by words all the same: by screen readers and by voice.

Streamlit calls a button without a label by its picture ("more_horiz icon"), in every language. So these have a label,
which is there for all but the eyes; a tooltip says it to those.
"""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

STYLE = """<style>
[class*="st-key-icons_"] button { position: relative; }
[class*="st-key-icons_"] button [data-testid="stMarkdownContainer"] {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
}
[class*="st-key-icons_"] button > div > [aria-hidden="true"] { display: none; }
/* Streamlit shows a button's keys, and reads them out in English. A tooltip and the settings name them. */
button [aria-label^="Shortcut "] { display: none; }
/* Streamlit writes white on the primary colour, which in the dark is light. */
button:is([kind="primary"], [kind="primaryFormSubmit"]):not(:disabled) { color: light-dark(#ffffff, #04211d); }
</style>"""


def style_icon_buttons() -> None:
    """Once a page: what `icons` needs."""
    st.html(STYLE)


def icons(key: str) -> DeltaGenerator:
    """A row in which of buttons, menus and popovers with an icon and a label only the icon is seen."""
    return st.container(horizontal=True, vertical_alignment="center", gap="small", width="content", key=f"icons_{key}")
