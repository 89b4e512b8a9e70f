"""The page Home: one click to an answer, what is loaded, and the chats of late."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from core.common.errors import DeckError
from core.library.adapters import room_to_load
from core.library.last_model import LastModel, last_load, last_model
from core.library.scan import LibraryEntry
from core.memory.adapter_room import AdapterRoom
from ui.chat.history import chat_links, recent_chats
from ui.load.disk import file_size
from ui.load.entries_cache import adapters_of, models
from ui.load.gauge import verdict
from ui.load.gpu_choice import devices_here
from ui.monitor.page import draw_gpu_bars
from ui.shared.engine_status import load, loading_progress, reconnect_button, silence_notice
from ui.shared.errors import show_error
from ui.shared.fragment import redraw_every
from ui.shared.gpus import gpu_error
from ui.shared.i18n import tr
from ui.shared.idle import draw_idle_today
from ui.shared.markdown import escape
from ui.shared.resources import engine
from ui.shared.routing import CHAT_PAGE, DOWNLOAD_PAGE, LOAD_PAGE, go_to
from ui.shared.starter import is_starter, starter_notice

RECENT_CHATS = 5
GPU_POLL_S = 2.0
# More than these are a list, and the list is on Load model.
OFFERED_MODELS = 3


def draw_home() -> None:
    st.title(tr("app.name"))
    state = engine().state
    st.markdown(tr("home.tagline") if state.server is None else tr("home.tagline_there", server=state.server))
    if engine().silent_s:
        silence_notice()
    elif state.phase == "ready":
        _draw_ready(state.model or "", state.server)
    elif state.phase == "loading":
        with st.container(border=True):
            if state.server is None:
                st.markdown(tr("engine.loading_model", name=state.model or ""))
            loading_progress()
    else:
        if state.error is not None:
            show_error(state.error)
            if state.server is not None:
                reconnect_button()
        _draw_start()
    redraw_every(GPU_POLL_S, draw_gpu_bars)
    draw_idle_today()
    recent = recent_chats(RECENT_CHATS)
    if recent:
        st.subheader(tr("home.recent"))
        chat_links(recent)


def _draw_ready(name: str, server: str | None) -> None:
    words = tr("home.ready", name=name) if server is None else tr("home.ready_there", name=name, server=server)
    st.success(words, icon=":material/check_circle:")
    with st.container(horizontal=True):
        st.button(tr("home.chat"), key="home_chat", type="primary", icon=":material/chat:", on_click=go_to,
                  args=(CHAT_PAGE,))  # fmt: skip
        st.button(tr("home.other"), key="home_load", type="tertiary", icon=":material/deployed_code:",
                  on_click=go_to, args=(LOAD_PAGE,))  # fmt: skip
    if server is None:
        starter_notice(name, "home")


def _draw_start() -> None:
    """The models that one click loads, the one to take first; else the way to a model."""
    try:
        found = [entry for entry in models() if entry.checkpoint is not None]
    except DeckError as error:
        show_error(error)
        return
    offered = offered_models(found)
    with st.container(border=True):
        st.markdown(tr("home.start" if offered else "home.none_fits" if found else "home.no_model"))
        for place, entry in enumerate(offered):
            _draw_offer(entry, place == 0)
        with st.container(horizontal=True):
            if found:
                st.button(tr("home.all_models"), key="home_load", icon=":material/deployed_code:", on_click=go_to,
                          type="tertiary" if offered else "primary", args=(LOAD_PAGE,))  # fmt: skip
            st.button(tr("home.get"), key="home_get", icon=":material/download:", on_click=go_to,
                      type="tertiary" if found else "primary", args=(DOWNLOAD_PAGE,))  # fmt: skip
    if offered and is_starter(offered[0].name):
        starter_notice(offered[0].name, "home")


def offered_models(entries: Sequence[LibraryEntry]) -> list[LibraryEntry]:
    """Those that fit: the one that was used last, then the largest first, and the starter last.

    None where the GPU cannot be used: a load is refused then, and Load model has the way on the CPU.
    """
    if gpu_error() is not None:
        return []
    last, devices = last_model(), devices_here()
    first = last.name if last else None
    offered: list[LibraryEntry] = []
    for entry in sorted(entries, key=lambda entry: (entry.name != first, is_starter(entry.name), -_size(entry))):
        if entry.checkpoint is not None and len(offered) < OFFERED_MODELS:
            wanted = _wanted(entry.name)
            adapters = room_to_load(entry.checkpoint, adapters_of)
            report = verdict(entry.checkpoint, devices, wanted.context_tokens, wanted.num_chats, adapters, wanted.cache)
            if not isinstance(report, DeckError) and report.fits:
                offered.append(entry)
    return offered


def _size(entry: LibraryEntry) -> int:
    return entry.checkpoint.size_bytes if entry.checkpoint else 0


def _wanted(name: str) -> LastModel:
    """What a click loads a model for: the context and the chats at once of the last time, else the usual."""
    return last_load(name) or LastModel(name, 0, 1)


def _draw_offer(entry: LibraryEntry, is_first: bool) -> None:
    assert entry.checkpoint is not None
    last = last_model()
    about = file_size(entry.checkpoint.size_bytes)
    if last is not None and last.name == entry.name:
        about += f" · {tr('home.last_used')}"
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"**{escape(entry.name)}**  \n:small[:gray[{about}]]", width="stretch")
        st.button(tr("home.chat"), key=f"home_start_{entry.name}", icon=":material/chat:",
                  type="primary" if is_first else "secondary", on_click=_start,
                  args=(entry.name, room_to_load(entry.checkpoint, adapters_of)))  # fmt: skip


def _start(name: str, adapters: AdapterRoom) -> None:
    wanted = _wanted(name)
    load(name, wanted.context_tokens, wanted.num_chats, adapters=adapters, cache=wanted.cache)
    go_to(CHAT_PAGE)
