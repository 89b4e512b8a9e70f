"""A LoRA adapter on the page Download: what it is, which models here can have it, its button, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from core.checkpoint.adapters import AdapterShape, is_adapter
from core.common.errors import DeckError
from core.common.paths import adapters_dir
from core.hub.download_job import id_of
from core.hub.source import Source, folder_name
from core.library.adapters import find_bases
from core.library.scan import free_bytes
from ui.download.begin import draw_button, draw_running, is_on_its_way, show_refused, warn_of_room
from ui.load.adapters import about_words
from ui.load.disk import size_words
from ui.load.entries_cache import adapter_alone, models
from ui.shared.errors import show_error
from ui.shared.i18n import tr
from ui.shared.markdown import escape
from ui.shared.resources import engine
from ui.shared.routing import CHAT_PAGE, LOAD_PAGE, go_to


def draw_adapter(source: Source, adapter: AdapterShape) -> None:
    st.markdown(f"**{escape(source.name)}**")
    with st.container(gap="xsmall"):
        st.markdown(f":material/tune: {tr('adapter.is_one')}")
        st.caption(about_words(adapter))
    try:
        own, others = _bases(adapter)
        folder = folder_name(source)
        free = free_bytes(adapters_dir())
    except DeckError as error:
        show_error(error)
        return
    _draw_bases(own, others)
    job_id = id_of(folder, is_adapter=True)
    with st.container(border=True):
        if adapter_alone(adapters_dir() / folder).shape is not None:
            st.markdown(f":green[:material/check_circle:] {tr('find.is_here', folder=folder)}")
            step = next_step(adapter)
            st.markdown(step.words)
            draw_way(step, job_id)
        elif is_on_its_way(job_id):
            draw_running()
        else:
            warn_of_room(adapter.num_bytes, free)
            with st.container(gap="xsmall"):
                words = tr("find.download", size=size_words(adapter.num_bytes))
                draw_button(source, folder, words, is_adapter=True)
                st.caption(tr("adapter.plan", folder=folder, free=size_words(free)))
            show_refused(job_id)


@dataclass(frozen=True, slots=True)
class NextStep:
    """What is to be done with an adapter that is on disk, and the page to do it on, if there is one."""

    words: str
    page: str | None = None


def next_step(adapter: AdapterShape) -> NextStep:
    """Raises DeckError where models/ cannot be read."""
    own, others = _bases(adapter)
    state = engine().state
    if not (own or others):
        return NextStep(tr("adapter.next_none"))
    if state.server is not None or state.facts is None or state.model not in (*own, *others):
        return NextStep(_with_experts(adapter, tr("adapter.next_load", names=", ".join(own or others))), LOAD_PAGE)
    room = state.facts.adapters
    if not room.holds(adapter.rank, adapter.changes_experts):
        return NextStep(_with_experts(adapter, tr("adapter.next_reload", name=state.model)), LOAD_PAGE)
    return NextStep(tr("adapter.next_chat", name=state.model), CHAT_PAGE)


def _with_experts(adapter: AdapterShape, words: str) -> str:
    """And what has to be chosen for the load, of an adapter that changes experts."""
    return f"{words} {tr('adapter.next_experts')}" if adapter.changes_experts else words


def draw_way(step: NextStep, job_id: str) -> None:
    """The button to the page of the next step."""
    if step.page == CHAT_PAGE:
        st.button(tr("load.chat"), key=f"adapter_chat_{job_id}", icon=":material/chat:", type="primary",
                  on_click=go_to, args=(CHAT_PAGE,))  # fmt: skip
    elif step.page is not None:
        st.button(tr("find.load"), key=f"adapter_load_{job_id}", icon=":material/deployed_code:", type="primary",
                  on_click=go_to, args=(step.page,))  # fmt: skip


def draw_fetched(folder: str) -> NextStep | None:
    """The adapter of a finished download and what to do next; None where it is there no more or of no use, which is
    said."""
    place = adapters_dir() / folder
    if not is_adapter(place):
        st.caption(tr("adapter.gone"))
        return None
    found = adapter_alone(place)
    adapter = found.shape
    if adapter is None:
        assert found.error is not None
        show_error(found.error)
        return None
    st.caption(about_words(adapter))
    try:
        step = next_step(adapter)
    except DeckError as error:
        show_error(error)
        return None
    st.markdown(step.words)
    return step


def _bases(adapter: AdapterShape) -> tuple[list[str], list[str]]:
    return find_bases(adapter, (entry.checkpoint for entry in models() if entry.checkpoint is not None))


def _draw_bases(own: list[str], others: list[str]) -> None:
    if own:
        st.markdown(f":green[:material/check_circle:] {tr('adapter.fits', names=', '.join(own))}")
    if others:
        st.markdown(f":orange[:material/help:] {tr('adapter.fits_other', names=', '.join(others))}")
    if not (own or others):
        st.markdown(f":orange[:material/info:] {tr('adapter.fits_none')}")
