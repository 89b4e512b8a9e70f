"""What happens soon because nothing is done: on every page, with a way to put it off."""

from __future__ import annotations

import streamlit as st

from core.standby.settings import idle_command
from ui.shared.errors import show_error
from ui.shared.fragment import redraw_every
from ui.shared.gpus import gpus_here
from ui.shared.i18n import tr
from ui.shared.resources import idle_watch

# Whoever works never sees it; nearer to the end it counts by seconds.
SHOWN_AFTER_S, SECONDS_FROM_S = 60.0, 180.0
# Less of a day says little.
TOLD_FROM_S = 600.0
SLOW_POLL_S, FAST_POLL_S, TOAST_S = 10.0, 1.0, 10
TOLD_KEY = "idle_told"


def sidebar_idle() -> None:
    """The countdown to the command that is run after so long without use; nothing where there is none."""
    poll_s = _poll_s()
    redraw_every(poll_s, _draw, poll_s)


def draw_idle_today() -> None:
    """For Home: how much of the day the card was there for nothing; nothing without one, or early in the day."""
    day = idle_watch().day.today
    if gpus_here() and day.on_s >= TOLD_FROM_S:
        st.caption(tr("idle.today", idle=duration(day.idle_s), on=duration(day.on_s)))


def duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return tr("idle.hours", hours=hours, minutes=minutes) if hours else tr("idle.minutes", count=minutes)


def _poll_s() -> float:
    left_s = idle_watch().left_s("command")
    return FAST_POLL_S if left_s is not None and left_s < SECONDS_FROM_S else SLOW_POLL_S


def _draw(poll_s: float) -> None:
    if _poll_s() != poll_s:
        st.rerun()
    watch = idle_watch()
    if watch.error is not None:
        show_error(watch.error)
    if (running := watch.running_command) is not None:
        st.warning(tr("idle.running", command=running), icon=":material/timer:")
    left_s = watch.left_s("command")
    is_shown = left_s is not None and watch.idle_s >= SHOWN_AFTER_S
    is_told, is_near = st.session_state.get(TOLD_KEY, False), left_s is not None and left_s < SECONDS_FROM_S
    st.session_state[TOLD_KEY] = is_shown and is_near
    if left_s is None or not is_shown:
        return
    words = tr("idle.countdown", time=_clock(left_s, poll_s), command=idle_command())
    st.warning(words, icon=":material/timer:")
    # On a phone the sidebar is folded away.
    if is_near and not is_told:
        st.toast(words, icon=":material/timer:", duration=TOAST_S)
    st.button(tr("idle.stay"), key="idle_stay", icon=":material/front_hand:", on_click=watch.note)


def _clock(seconds: float, poll_s: float) -> str:
    """Minutes alone where seconds would be wrong by the next look."""
    minutes, rest = divmod(int(seconds), 60)
    if poll_s == FAST_POLL_S:
        return f"{minutes}:{rest:02}"
    return tr("idle.minutes", count=minutes)
