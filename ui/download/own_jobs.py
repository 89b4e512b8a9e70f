"""Jobs of quantizing as cards beside the downloads: how far each is, and pause, resume, cancel."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from core.common.errors import DeckError
from core.common.values import printable
from core.quantize.answer import answer_words
from core.quantize.card import loss_words
from core.quantize.job import QuantizeJob
from core.quantize.progress import Phase, QuantizeState
from ui.download.jobs import duration, progress_words
from ui.load.disk import size_words
from ui.shared.engine_status import load
from ui.shared.errors import show_error
from ui.shared.fragment import redraw_every
from ui.shared.i18n import language, tr
from ui.shared.markdown import escape
from ui.shared.resources import quantizing
from ui.shared.routing import LOAD_PAGE, go_to

POLL_S = 0.5
ERROR_KEY = "own_job_error"
MOVING = ("queued", "running", "stopping")
ICONS = {
    "queued": ":gray[:material/schedule:]",
    "running": ":primary[:material/compress:]",
    "stopping": ":gray[:material/pause_circle:]",
    "paused": ":gray[:material/pause_circle:]",
    "done": ":green[:material/check_circle:]",
    "failed": ":red[:material/error:]",
    "cancelled": ":gray[:material/cancel:]",
}


def draw_own_jobs() -> None:
    """Every job, the newest first."""
    for job in reversed(quantizing().jobs):
        draw_own_job(job)


def draw_own_job(job: QuantizeJob) -> None:
    """A card: a fragment inside it draws what moves, the page draws the rest."""
    state = job.snapshot()
    with st.container(border=True, key=f"own_entry_{job.id}"):
        st.markdown(f"**{escape(job.name)} → {escape(job.id)}**")
        if state.phase in MOVING:
            redraw_every(POLL_S, _draw_state, job, state.phase)
        else:
            with st.container():
                _draw_state(job, state.phase)
        if refused := st.session_state.pop(f"{ERROR_KEY}_{job.id}", None):
            show_error(refused)
        _draw_buttons(job, state)


def _draw_state(job: QuantizeJob, drawn: Phase) -> None:
    state = job.snapshot()
    if state.phase != drawn:
        st.rerun()
    st.markdown(f"{ICONS[state.phase]} {phase_words(state)}")
    if state.phase not in ("done", "cancelled", "failed"):
        st.progress(fraction_of(state), text=own_progress_words(state))
    if state.result is not None:
        for key, words in (loss_words(state.result), answer_words(state.result, job.file.options, language())):
            st.markdown(tr(f"quantize.{key}", **words))
    if state.error is not None:
        show_error(state.error)
    if state.left:
        size = size_words(sum(one.num_bytes for one in state.left))
        places = ", ".join(printable(str(one.folder)) for one in state.left)
        st.caption(tr("own.left", folder=places, size=size))


def phase_words(state: QuantizeState) -> str:
    return tr("own.running") if state.phase == "running" else tr(f"own.phase_{state.phase}")


def fraction_of(state: QuantizeState) -> float:
    """What the bar shows: while a source is fetched, of its bytes."""
    download = state.download
    if state.stage == "download" and download is not None:
        return min(1.0, download.done_bytes / download.total_bytes) if download.total_bytes else 0.0
    return state.fraction


def own_progress_words(state: QuantizeState) -> str:
    """The stage, and in the long ones how far it is."""
    if state.stage == "download" and state.download is not None and state.download.total_bytes:
        return f"{tr('quantize.stage_download')} · {progress_words(state.download)}"
    if state.stage != "quantize" or not state.layers:
        return tr(f"quantize.stage_{state.stage}")
    words = [tr("quantize.layer", layer=state.layer, layers=state.layers)]
    if state.layer_s is not None and state.left_s is not None:
        words += [tr("own.layer_s", seconds=f"{state.layer_s:.1f}"), tr("jobs.left", time=duration(state.left_s))]
    return " · ".join(words)


def _draw_buttons(job: QuantizeJob, state: QuantizeState) -> None:
    phase = state.phase
    with st.container(horizontal=True):
        if phase == "done":
            st.button(tr("jobs.load"), key=f"own_load_{job.id}", icon=":material/play_arrow:", type="primary",
                      on_click=_load, args=(job.id,))  # fmt: skip
        elif phase in ("paused", "failed"):
            st.button(tr("jobs.resume"), key=f"own_resume_{job.id}", icon=":material/play_arrow:", type="primary",
                      on_click=quantizing().resume, args=(job.id,))  # fmt: skip
        elif phase == "running":
            # What cannot go on later would begin anew: then there is only the end.
            st.button(tr("jobs.pause"), key=f"own_pause_{job.id}", icon=":material/pause:",
                      on_click=quantizing().pause, args=(job.id,), disabled=not job.can_pause,
                      help=None if job.can_pause else tr("own.cannot_pause"))  # fmt: skip
        if phase in ("done", "cancelled", "failed"):
            st.button(tr("jobs.dismiss"), key=f"own_dismiss_{job.id}", icon=":material/close:",
                      on_click=_try, args=(quantizing().forget, job.id))  # fmt: skip
        else:
            with st.popover(tr("jobs.cancel"), icon=":material/delete:", key=f"own_ask_{job.id}"):
                st.markdown(tr("own.cancel_question"))
                st.button(tr("jobs.cancel_yes"), key=f"own_cancel_{job.id}", type="primary",
                          on_click=_try, args=(quantizing().cancel, job.id))  # fmt: skip


def _try(change: Callable[[str], None], job_id: str) -> None:
    try:
        change(job_id)
    except DeckError as error:
        st.session_state[f"{ERROR_KEY}_{job_id}"] = error


def _load(folder: str) -> None:
    load(folder)
    go_to(LOAD_PAGE)
