"""The page Load model: the models on disk in their order, the one that answers, and the way to another."""

from __future__ import annotations

import streamlit as st

from core.common.errors import DeckError
from core.engine.protocol import EngineState
from ui.load.entries import draw_entry, draw_state
from ui.load.entries_cache import models
from ui.load.gpu_choice import choose_devices
from ui.load.upkeep import draw_folders
from ui.shared.engine_status import silence_notice
from ui.shared.errors import show_error
from ui.shared.i18n import tr
from ui.shared.markdown import escape
from ui.shared.resources import engine
from ui.shared.routing import DOWNLOAD_PAGE, go_to


def draw_here() -> None:
    state = engine().state
    if state.server is not None and state.model is not None:
        st.info(tr("load.is_elsewhere", name=state.model, server=state.server), icon=":material/lan:")
    try:
        # What answers comes first; what cannot be loaded stands below with its reason.
        entries = sorted(models(), key=lambda entry: (entry.checkpoint is None, not is_current(entry.name, state)))
    except DeckError as error:
        show_error(error)
        entries = []
    if state.model and is_current(state.model, state) and state.model not in [entry.name for entry in entries]:
        st.markdown(f"**{escape(state.model or '')}**")
        draw_state(state)
    silence_notice()
    if engine().running_answers:
        st.caption(tr("load.ends_answers"))
    devices = choose_devices() if entries else ()
    for entry in entries:
        draw_entry(entry, state, devices)
    if not entries:
        _draw_none()
    draw_folders(entries)


def is_current(name: str, state: EngineState) -> bool:
    """Whether the engine of this machine has that model, loads it, or failed to."""
    return state.server is None and state.model == name


def _draw_none() -> None:
    with st.container(border=True):
        st.markdown(tr("load.none"))
        st.button(tr("load.get"), key="load_get", icon=":material/download:", type="primary",
                  on_click=go_to, args=(DOWNLOAD_PAGE,))  # fmt: skip
