"""The downloads as cards: how far each is, pause, resume, cancel; and their line in the sidebar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from core.common.errors import DeckError
from core.common.urls import host_name
from core.hub.download_job import DownloadJob
from core.hub.progress import JobState, Phase
from ui.download.adapter import NextStep, draw_fetched, draw_way
from ui.load.disk import size_words
from ui.shared.engine_status import load
from ui.shared.errors import sentence, show_error
from ui.shared.fragment import redraw_every
from ui.shared.i18n import tr
from ui.shared.markdown import escape, shortened
from ui.shared.resources import downloads, quantizing
from ui.shared.routing import DOWNLOAD_PAGE, LOAD_PAGE, go_to, show_section

POLL_S = 0.5
SIDEBAR_POLL_S = 1.0
NAME_CHARS = 34
ERROR_KEY = "job_error"
# Phases in which something goes on that is worth looking at again; the others wait for somebody.
MOVING = ("queued", "looking", "running", "pausing", "stopping", "checking")
ICONS = {
    "queued": ":gray[:material/schedule:]",
    "looking": ":primary[:material/travel_explore:]",
    "running": ":primary[:material/downloading:]",
    "pausing": ":gray[:material/pause_circle:]",
    "paused": ":gray[:material/pause_circle:]",
    "checking": ":primary[:material/fact_check:]",
    "done": ":green[:material/check_circle:]",
    "failed": ":red[:material/error:]",
    "cancelled": ":gray[:material/cancel:]",
}

FILE_ICONS = {
    "waiting": ":gray[:material/schedule:]",
    "running": ":primary[:material/downloading:]",
    "checking": ":primary[:material/fact_check:]",
    "done": ":green[:material/check:]",
}

Shown = tuple[tuple[str, str], ...]


def shown_now() -> Shown:
    """What of the downloads decides how a page looks; bytes and speeds have fragments of their own."""
    own: Shown = tuple((f"own {job.id}", job.phase) for job in quantizing().jobs)
    return (*own, *((job.id, job.snapshot().phase) for job in downloads().jobs))


def draw_jobs() -> None:
    """Every download, the newest first."""
    jobs = downloads().jobs
    if not jobs and not quantizing().jobs:
        st.info(tr("jobs.none"), icon=":material/download:")
    for job in reversed(jobs):
        _draw_job(job)


def _draw_job(job: DownloadJob) -> None:
    """A card: fragments inside it draw what moves, the page draws the rest.

    It has the same parts in every phase, so that a question or a list that somebody has opened stays open.
    """
    state = job.snapshot()
    with st.container(border=True, key=f"job_entry_{job.id}"):
        badge = f" :gray-badge[:material/tune: {tr('adapter.label')}]" if job.is_adapter else ""
        st.markdown(f"**{escape(job.source.name)}**{badge}")
        _keep_drawn(state.phase, _draw_state, job, state.phase)
        if refused := st.session_state.pop(f"{ERROR_KEY}_{job.id}", None):
            show_error(refused)
        is_fetched = job.is_adapter and state.phase == "done"
        _draw_buttons(job, state.phase, draw_fetched(job.folder_name) if is_fetched else None)
        if state.phase != "cancelled":
            with st.expander(tr("jobs.files"), key=f"job_files_{job.id}"):
                _keep_drawn(state.phase, _draw_files, job)


def _keep_drawn(phase: Phase, draw: Callable[..., None], *args: Any) -> None:
    if phase in MOVING:
        redraw_every(POLL_S, draw, *args)
    else:
        with st.container():
            draw(*args)


def _draw_state(job: DownloadJob, drawn: Phase) -> None:
    """How far it is; in another phase than the page was drawn for, the card has other buttons."""
    state = job.snapshot()
    if state.phase != drawn:
        st.rerun()
    st.markdown(f"{ICONS[state.phase]} {tr(f'jobs.phase_{state.phase}')} · {escape(host_name(job.source.endpoint))}")
    if state.total_bytes and state.phase not in ("done", "cancelled"):
        st.progress(min(1.0, state.done_bytes / state.total_bytes), text=progress_words(state))
    if state.notice is not None:
        st.caption(f":material/info: {sentence(state.notice)}")
    if state.error is not None:
        show_error(state.error)


def progress_words(state: JobState) -> str:
    """Bytes of bytes, the speed and the time that is left, as far as they are known."""
    words = [tr("jobs.bytes", done=size_words(state.done_bytes), total=size_words(state.total_bytes))]
    if state.phase == "running" and state.speed_bytes_s > 0:
        words.append(tr("jobs.speed", speed=size_words(round(state.speed_bytes_s))))
        if state.left_s is not None:
            words.append(tr("jobs.left", time=duration(state.left_s)))
    return " · ".join(words)


def duration(seconds: float) -> str:
    """A time to wait, as coarse as anybody wants to know it: 0:45, 12:30, 3:05:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _draw_buttons(job: DownloadJob, phase: Phase, step: NextStep | None) -> None:
    """`step`: what comes next for an adapter that is complete."""
    with st.container(horizontal=True):
        if step is not None:
            draw_way(step, job.id)
        if phase == "done" and not job.is_adapter:
            st.button(tr("jobs.load"), key=f"job_load_{job.id}", icon=":material/play_arrow:", type="primary",
                      on_click=_load, args=(job.folder_name,))  # fmt: skip
        elif phase in ("paused", "failed"):
            st.button(tr("jobs.resume"), key=f"job_resume_{job.id}", icon=":material/play_arrow:", type="primary",
                      on_click=downloads().resume, args=(job.id,))  # fmt: skip
        elif phase in ("queued", "looking", "running"):
            st.button(tr("jobs.pause"), key=f"job_pause_{job.id}", icon=":material/pause:",
                      on_click=downloads().pause, args=(job.id,))  # fmt: skip
        if phase in ("done", "cancelled"):
            st.button(tr("jobs.dismiss"), key=f"job_dismiss_{job.id}", icon=":material/close:",
                      on_click=downloads().forget, args=(job.id,))  # fmt: skip
        else:
            with st.popover(tr("jobs.cancel"), icon=":material/delete:", key=f"job_ask_{job.id}"):
                _keep_drawn(phase, _draw_question, job)
                st.button(tr("jobs.cancel_yes"), key=f"job_cancel_{job.id}", type="primary",
                          on_click=_cancel, args=(job.id,))  # fmt: skip


def _draw_question(job: DownloadJob) -> None:
    st.markdown(tr("jobs.cancel_question", size=size_words(job.snapshot().done_bytes)))


def _cancel(job_id: str) -> None:
    try:
        downloads().cancel(job_id)
    except DeckError as error:
        st.session_state[f"{ERROR_KEY}_{job_id}"] = error


def _load(folder: str) -> None:
    load(folder)
    go_to(LOAD_PAGE)


def _draw_files(job: DownloadJob) -> None:
    state = job.snapshot()
    if not state.files:
        st.caption(tr("jobs.files_unknown"))
        return
    num_done = sum(file.phase == "done" for file in state.files)
    st.caption(tr("jobs.files_done", done=num_done, count=len(state.files)))
    for file in sorted(state.files, key=lambda file: -file.size_bytes):
        # In a download that rests, a file that is half there waits.
        phase = file.phase if state.phase in MOVING or file.phase == "done" else "waiting"
        mark = FILE_ICONS[phase]
        sizes = tr("jobs.bytes", done=size_words(file.done_bytes), total=size_words(file.size_bytes))
        st.markdown(f"{mark} {escape(file.name)} :small[:gray[{sizes}]]")


def sidebar_downloads() -> None:
    """A line on every page while something is fetched. It also brings the page up to date when a download ends."""
    shown = shown_now()
    if any(phase in MOVING for _, phase in shown):
        redraw_every(SIDEBAR_POLL_S, _draw_line, shown)


def _draw_line(shown: Shown) -> None:
    if shown_now() != shown:
        st.rerun()
    states = [(job, job.snapshot()) for job in downloads().jobs]
    moving = [(job, state) for job, state in states if state.phase in MOVING]
    own = [job for job in quantizing().jobs if job.phase in MOVING]
    with st.container(border=True, gap="xsmall"):
        for made in own[:1]:
            st.markdown(f":primary[:material/compress:] {tr('own.running')}")
            st.caption(escape(shortened(made.id, NAME_CHARS)))
            st.progress(made.snapshot().fraction)
        for job, state in moving[:1]:
            st.markdown(f"{ICONS[state.phase]} {tr(f'jobs.phase_{state.phase}')}")
            st.caption(escape(shortened(job.source.name, NAME_CHARS)))
            if state.total_bytes:
                st.progress(min(1.0, state.done_bytes / state.total_bytes), text=progress_words(state))
        others = len(moving) + len(own) - bool(moving) - bool(own)
        more = tr("jobs.more", count=others) if others else tr("jobs.show")
        st.button(more, key="sidebar_downloads", type="tertiary", on_click=_show)


def _show() -> None:
    show_section("jobs")
    go_to(DOWNLOAD_PAGE)
