"""The button that begins a download, and what stands in its place while that is on its way."""

from __future__ import annotations

import streamlit as st

from core.common.errors import DeckError
from core.hub.download_job import id_of
from core.hub.folders import MARGIN_BYTES
from core.hub.source import Source
from ui.load.disk import size_words
from ui.shared.errors import show_error
from ui.shared.i18n import tr
from ui.shared.resources import downloads
from ui.shared.routing import show_section

REFUSED_KEY = "download_refused"


def is_on_its_way(job_id: str) -> bool:
    return any(job.id == job_id and job.phase not in ("done", "cancelled") for job in downloads().jobs)


def draw_running() -> None:
    st.markdown(f":primary[:material/downloading:] {tr('find.is_running')}")
    st.button(tr("find.show_downloads"), key="find_show", icon=":material/list:", on_click=show_section, args=("jobs",))


def warn_of_room(size_bytes: int, free_bytes: int) -> None:
    """As the download itself counts, which leaves a margin: that is most of what a small adapter needs."""
    needed_bytes = size_bytes + MARGIN_BYTES
    if free_bytes < needed_bytes:
        words = tr("find.no_room", size=size_words(needed_bytes), free=size_words(free_bytes))
        st.warning(words, icon=":material/hard_drive:")


def draw_button(source: Source, folder: str, words: str, is_adapter: bool = False) -> None:
    job_id = id_of(folder, is_adapter)
    st.button(words, icon=":material/download:", type="primary", width="stretch",
              key=f"find_download_{job_id}_{source.kind}_{source.endpoint}", on_click=_begin,
              args=(source, job_id, is_adapter))  # fmt: skip


def show_refused(job_id: str) -> None:
    """Why the button began nothing."""
    if error := st.session_state.pop(f"{REFUSED_KEY}_{job_id}", None):
        show_error(error)


def _begin(source: Source, job_id: str, is_adapter: bool) -> None:
    try:
        downloads().add(source, is_adapter)
        show_section("jobs")
    except DeckError as error:
        st.session_state[f"{REFUSED_KEY}_{job_id}"] = error
