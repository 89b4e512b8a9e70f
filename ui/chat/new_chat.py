"""The chat that is only this tab's until something is said in it: empty chats are not kept."""

from __future__ import annotations

import secrets
from typing import Any

import streamlit as st

from core.chat.records import Chat, ChatInfo, Message, Mode
from ui.chat.setup import character_prompt, default_mode

NEW, NEW_ID = "new", 0
NEW_KEY = "chat_new_values"


def new_values() -> dict[str, Any]:
    """What was chosen for the new chat: "character", "mode" (None: a sensible one), "settings", "greeting"."""
    if NEW_KEY not in st.session_state:
        settings = {"seed": secrets.token_hex(4)}
        st.session_state[NEW_KEY] = {"character": "", "mode": None, "settings": settings, "greeting": 0}
    values: dict[str, Any] = st.session_state[NEW_KEY]
    return values


def new_tag() -> str:
    return f"{NEW}_{new_values()['settings']['seed']}"


def new_chat_info() -> ChatInfo:
    values = new_values()
    mode: Mode = values["mode"] or default_mode(bool(values["character"]))
    return ChatInfo(NEW_ID, "", False, 0.0, 0.0, False, mode, values["character"], values["settings"], "")


def new_chat() -> Chat:
    values, info = new_values(), new_chat_info()
    greetings = character_prompt(info).greetings() if info.mode != "notebook" else ()
    if not greetings:
        return Chat(info, ())
    # Their ids are below 0: the greetings to flip through, of which one will be the first message.
    ids = tuple(-place - 1 for place in range(len(greetings)))
    chosen = min(values["greeting"], len(greetings) - 1)
    return Chat(info, (Message(ids[chosen], "assistant", greetings[chosen], 0.0, "done", {}, ids),))


def forget_new() -> None:
    st.session_state.pop(NEW_KEY, None)
