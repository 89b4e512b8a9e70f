"""The choice of a LoRA adapter, in a chat's settings."""

from __future__ import annotations

import streamlit as st

from core.chat.records import ChatInfo
from ui.chat.adapter_choice import adapters_here, fitting_adapters
from ui.chat.chat_settings import change_settings
from ui.shared.i18n import text, tr
from ui.shared.identity import key_of
from ui.shared.markdown import escape
from ui.shared.resources import engine


def adapter_form(tag: str, info: ChatInfo) -> None:
    state = engine().state
    names = [folder.name for folder in adapters_here(state)]
    if not names:
        if fitting_adapters(state):
            st.caption(tr("chat.adapter_no_room", name=state.model or ""))
        return
    wanted = info.settings.get("adapter") or ""
    shown = wanted if wanted in names else ""
    key = key_of("chat_adapter", tag, shown)

    def choose() -> None:
        # A browser that shows the choice late tells it as if it were new.
        if (now := st.session_state[key]) != shown:
            change_settings(tag, adapter=now or None)

    st.selectbox(tr("chat.adapter"), ["", *names], key=key, help=tr("chat.adapter_help"), on_change=choose,
                 format_func=lambda name: name or text("chat.adapter_none"))  # fmt: skip
    if wanted and not shown:
        st.caption(tr("chat.adapter_gone", name=escape(wanted)))
