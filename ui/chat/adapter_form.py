"""The choice of a LoRA adapter, in a chat's settings, and that the chosen one does not answer."""

from __future__ import annotations

import streamlit as st

from core.chat.records import ChatInfo
from core.checkpoint.adapters import AdapterShape
from ui.chat.adapter_choice import adapter_of, adapters_by_room
from ui.chat.chat_settings import change_settings
from ui.shared.i18n import text, tr
from ui.shared.identity import key_of
from ui.shared.markdown import shortened
from ui.shared.resources import engine

# Of adapters that are told in one line.
MAX_NAMES, NAME_CHARS = 5, 60


def adapter_form(tag: str, info: ChatInfo) -> None:
    state = engine().state
    answering, lacking = adapters_by_room(state)
    names = [folder.name for folder in answering]
    shown = str(info.settings.get("adapter") or "")
    if shown and shown not in names:
        # It can be given up.
        names.append(shown)
    if names:
        _draw_choice(tag, shown, names)
    if lacking:
        _say_who_lacks_room(lacking, state.model or "")


def _draw_choice(tag: str, shown: str, names: list[str]) -> None:
    key = key_of("chat_adapter", tag, shown)

    def choose() -> None:
        # A browser that shows the choice late tells it as if it were new.
        if (now := st.session_state[key]) != shown:
            change_settings(tag, adapter=now or None)

    st.selectbox(tr("chat.adapter"), ["", *names], key=key, help=tr("chat.adapter_help"),
                 format_func=lambda name: name or text("chat.adapter_none"), on_change=choose)  # fmt: skip


def _say_who_lacks_room(lacking: list[AdapterShape], model: str) -> None:
    """One without room was once offered, and each answer with it failed."""
    names = [shortened(one.name, NAME_CHARS) for one in lacking[:MAX_NAMES]] + ["…"] * (len(lacking) > MAX_NAMES)
    need_experts = any(one.changes_experts for one in lacking)
    key = "chat.adapter_no_expert_room" if need_experts else "chat.adapter_no_room"
    st.caption(tr(key, names=", ".join(names), model=model))


def say_adapter_is_gone(info: ChatInfo) -> None:
    """An answer without the adapter looks like one with it."""
    state, wanted = engine().state, info.settings.get("adapter")
    if wanted and state.phase == "ready" and adapter_of(info, state) is None:
        st.warning(tr("chat.adapter_gone", name=str(wanted)), icon=":material/tune:")
