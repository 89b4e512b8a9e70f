"""The page Home: what is loaded, what to do next, and the chats of late."""

from __future__ import annotations

import streamlit as st

from core.common.errors import DeckError
from ui.chat.history import chat_links, recent_chats
from ui.load.entries_cache import models
from ui.monitor.page import draw_gpu_bars
from ui.shared.engine_status import loading_progress, reconnect_button, silence_notice
from ui.shared.errors import show_error
from ui.shared.fragment import redraw_every
from ui.shared.i18n import tr
from ui.shared.resources import engine
from ui.shared.routing import CHAT_PAGE, DOWNLOAD_PAGE, LOAD_PAGE, go_to

RECENT_CHATS = 5
GPU_POLL_S = 2.0


def draw_home() -> None:
    st.title(tr("app.name"))
    server = engine().state.server
    st.markdown(tr("home.tagline") if server is None else tr("home.tagline_there", server=server))
    _draw_engine()
    redraw_every(GPU_POLL_S, draw_gpu_bars)
    st.subheader(tr("home.steps"))
    _draw_steps()
    recent = recent_chats(RECENT_CHATS)
    if recent:
        st.subheader(tr("home.recent"))
        chat_links(recent)


def _draw_engine() -> None:
    state = engine().state
    if engine().silent_s:
        silence_notice()
    elif state.phase == "ready":
        name = state.model or ""
        ready = tr("home.ready", name=name) if state.server is None else tr("home.ready_there", name=name,
                   server=state.server)  # fmt: skip
        st.success(ready, icon=":material/check_circle:")
    elif state.phase == "loading":
        with st.container(border=True):
            if state.server is None:
                st.markdown(tr("engine.loading_model", name=state.model or ""))
            loading_progress()
    elif state.error is not None:
        show_error(state.error)
        if state.server is not None:
            reconnect_button()


def _draw_steps() -> None:
    num_models = _count_models()
    phase = engine().state.phase
    has_model, is_loaded = num_models > 0, phase == "ready"
    found = tr("home.models_found", count=num_models) if has_model else tr("home.no_model")
    columns = st.columns(3)
    with columns[0]:
        _draw_step("get", "download", DOWNLOAD_PAGE, found, has_model, not has_model)
    with columns[1]:
        can_load = has_model and phase in ("empty", "failed")
        _draw_step("load", "deployed_code", LOAD_PAGE, tr("home.load_text"), is_loaded, can_load)
    with columns[2]:
        _draw_step("chat", "chat", CHAT_PAGE, tr("home.chat_text"), False, is_loaded)


def _count_models() -> int:
    try:
        return sum(entry.checkpoint is not None for entry in models())
    except DeckError as error:
        show_error(error)
        return 0


def _draw_step(name: str, icon: str, page: str, text: str, is_done: bool, is_next: bool) -> None:
    mark = ":green[:material/check_circle:]" if is_done else f":primary[:material/{icon}:]"
    with st.container(border=True, height="stretch"):
        st.markdown(f"{mark} **{tr(f'home.{name}_title')}**")
        st.caption(text)
        st.space("stretch")
        st.button(tr(f"home.{name}_button"), key=f"home_{name}", width="stretch",
                  type="primary" if is_next else "secondary", on_click=go_to, args=(page,))  # fmt: skip
