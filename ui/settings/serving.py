"""Serving on the page Settings: what a program gets that asks for another model, and what happens once nobody asks."""

from __future__ import annotations

import streamlit as st

from core.standby.settings import (
    MAX_MINUTES,
    OTHER_NAMES,
    Action,
    idle_command,
    idle_minutes,
    is_command_there,
    other_names,
    set_idle_minutes,
    set_other_names,
)
from ui.shared.i18n import tr
from ui.shared.identity import key_of
from ui.shared.people import person


def draw_serving() -> None:
    key = key_of("settings_other_names", "", other_names())
    words = {name: tr(f"settings.other_names_{name}") for name in OTHER_NAMES}
    st.selectbox(tr("settings.other_names"), OTHER_NAMES, key=key, help=tr("settings.other_names_help"),
                 format_func=words.__getitem__, on_change=_choose_names, args=(key,))  # fmt: skip


def draw_idle() -> None:
    """Whoever signed in through a provider does not decide about the machine."""
    _draw_minutes("unload", tr("settings.idle_unload"), tr("settings.idle_unload_help"))
    if person():
        return
    if command := idle_command():
        _draw_minutes("command", tr("settings.idle_command", command=command), tr("settings.idle_command_help"))
        if idle_minutes("command") and not is_command_there():
            st.warning(tr("doctor.idle_missing", command=command, minutes=idle_minutes("command")))
    else:
        st.caption(tr("settings.idle_no_command"))


def _draw_minutes(action: Action, label: str, about: str) -> None:
    key = key_of(f"settings_idle_{action}", "", idle_minutes(action))
    st.number_input(label, 0, MAX_MINUTES, step=5, key=key, help=about, on_change=_choose_minutes, args=(action, key))


def _choose_minutes(action: Action, key: str) -> None:
    set_idle_minutes(action, st.session_state[key])


def _choose_names(key: str) -> None:
    set_other_names(st.session_state[key])
