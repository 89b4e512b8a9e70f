"""Whether and how much the model thinks in a chat, where its template lets one choose, and after how many tokens a
thought is ended."""

from __future__ import annotations

import streamlit as st

from core.chat.records import ChatInfo
from core.chat.thinking import BUDGET, EFFORT, EFFORTS, MAX_BUDGET_TOKENS, SWITCHES, THINKING, note_thinking
from ui.chat.chat_settings import change_settings
from ui.chat.setup import loaded_model, thinking_settings
from ui.shared.i18n import text, tr
from ui.shared.identity import key_of
from ui.shared.resources import engine, preferences

# Stands for what the model does by itself.
DEFAULT = "default"


def thinking_form(tag: str, info: ChatInfo) -> None:
    """Nothing for a model that is not known to think."""
    if info.mode == "notebook" or (model := loaded_model()) is None:
        return
    # Plain lines are asked without the template.
    switches = model.template.switches if info.mode != "chat" else frozenset[str]()
    is_remote = model.folder is None
    if model.template.thought_format is None and not switches:
        return
    left, right = st.columns(2)
    with left:
        if not switches.isdisjoint(SWITCHES):
            _choice(THINKING, ("on", "off"), tag, info)
        if EFFORT in switches:
            _choice(EFFORT, EFFORTS, tag, info)
    with right:
        if not is_remote:
            _budget(tag, info)


def _choice(name: str, values: tuple[str, ...], tag: str, info: ChatInfo) -> None:
    chosen = thinking_settings(info).get(name)
    options = [DEFAULT, *values]
    shown = str(chosen) if chosen in values else DEFAULT
    key = key_of(f"chat_{name}", tag, shown)
    st.selectbox(tr(f"chat.{name}_label"), options, key=key, help=tr(f"chat.{name}_help"),
                 format_func=lambda one: text(f"chat.{name}_{one}"), on_change=_choose,
                 args=(name, tag, key, shown))  # fmt: skip


def _choose(name: str, tag: str, key: str, shown: str) -> None:
    # A browser that shows the choice late tells it as if it were new.
    if (now := st.session_state[key]) != shown:
        _keep(tag, name, None if now == DEFAULT else now)


def _budget(tag: str, info: ChatInfo) -> None:
    value = thinking_settings(info).get(BUDGET)
    shown = value if type(value) is int and 1 <= value <= MAX_BUDGET_TOKENS else None
    key = key_of(f"chat_{BUDGET}", tag, shown)
    st.number_input(tr(f"chat.{BUDGET}"), 1, MAX_BUDGET_TOKENS, value=None, step=1, key=key,
                    placeholder=tr(f"chat.{BUDGET}_none"), help=tr(f"chat.{BUDGET}_help"), on_change=_keep_budget,
                    args=(tag, key, shown))  # fmt: skip


def _keep_budget(tag: str, key: str, shown: int | None) -> None:
    if (now := st.session_state[key]) != shown:
        _keep(tag, BUDGET, now)


def _keep(tag: str, name: str, value: str | int | None) -> None:
    """For the chat, and for the next ones with this model."""
    change_settings(tag, **{name: value})
    if model := engine().state.model:
        note_thinking(preferences(), model, name, value)
