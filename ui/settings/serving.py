"""Serving on the page Settings: what a program gets that asks for another model by its name."""

from __future__ import annotations

import streamlit as st

from core.standby.settings import OTHER_NAMES, other_names, set_other_names
from ui.shared.i18n import tr

NAMES_KEY = "settings_other_names"


def draw_serving() -> None:
    # Another tab, or another person of this installation, may have changed it meanwhile.
    st.session_state[NAMES_KEY] = other_names()
    words = {name: tr(f"settings.other_names_{name}") for name in OTHER_NAMES}
    st.selectbox(tr("settings.other_names"), OTHER_NAMES, key=NAMES_KEY, help=tr("settings.other_names_help"),
                 format_func=words.__getitem__, on_change=_choose_names)  # fmt: skip


def _choose_names() -> None:
    set_other_names(st.session_state[NAMES_KEY])
