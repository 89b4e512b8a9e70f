"""The starter model, wherever it is met: that it is a toy, and the way to a real model."""

from __future__ import annotations

import streamlit as st

from core.starter.build import NAME
from ui.shared.i18n import tr
from ui.shared.routing import DOWNLOAD_PAGE, go_to


def is_starter(name: str | None) -> bool:
    return name == NAME


def starter_notice(name: str | None, place: str) -> None:
    """What to expect of the starter, where `name` is its name. `place` tells the notices of one page apart."""
    if not is_starter(name):
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"starter_notice_{place}"):
        st.caption(f":material/toys: {tr('starter.toy')}", width="content")
        st.button(tr("starter.get_real"), key=f"starter_get_real_{place}", type="tertiary", on_click=go_to,
                  args=(DOWNLOAD_PAGE,))  # fmt: skip
