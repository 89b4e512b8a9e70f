"""The choice of a LoRA adapter, in a chat's settings, and that the chosen one does not answer."""

from __future__ import annotations

import streamlit as st

from core.chat.records import ChatInfo
from ui.chat.adapter_choice import adapter_of, adapters_here, fitting_adapters
from ui.chat.chat_settings import change_settings
from ui.shared.i18n import text, tr
from ui.shared.identity import key_of
from ui.shared.resources import engine


def adapter_form(tag: str, info: ChatInfo) -> None:
    state = engine().state
    names = [folder.name for folder in adapters_here(state)]
    if not names and fitting_adapters(state):
        st.caption(tr("chat.adapter_no_room", name=state.model or ""))
    shown = str(info.settings.get("adapter") or "")
    if shown and shown not in names:
        # It can be given up.
        names.append(shown)
    if not names:
        return
    key = key_of("chat_adapter", tag, shown)

    def choose() -> None:
        # A browser that shows the choice late tells it as if it were new.
        if (now := st.session_state[key]) != shown:
            change_settings(tag, adapter=now or None)

    st.selectbox(tr("chat.adapter"), ["", *names], key=key, help=tr("chat.adapter_help"),
                 format_func=lambda name: name or text("chat.adapter_none"), on_change=choose)  # fmt: skip


def say_adapter_is_gone(info: ChatInfo) -> None:
    """An answer without the adapter looks like one with it."""
    state, wanted = engine().state, info.settings.get("adapter")
    if wanted and state.phase == "ready" and adapter_of(info, state) is None:
        st.warning(tr("chat.adapter_gone", name=str(wanted)), icon=":material/tune:")
