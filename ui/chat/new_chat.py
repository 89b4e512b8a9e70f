"""The chat that is only this tab's until something is said in it: empty chats are not kept."""

from __future__ import annotations

import secrets
from typing import Any

import streamlit as st

from core.chat.records import Chat, ChatInfo, CopiedChat, CopiedMessage, Message, Mode
from ui.chat.setup import MAX_GREETINGS, character_prompt, default_mode, group_of, key_of_speaker

NEW, NEW_ID = "new", 0
NEW_KEY = "chat_new_values"


def new_values() -> dict[str, Any]:
    """What was chosen for the new chat: "character", "members", "lorebooks", "mode", "settings", "greeting".

    Mode None is a sensible one.
    """
    if NEW_KEY not in st.session_state:
        settings = {"seed": secrets.token_hex(4)}
        st.session_state[NEW_KEY] = {
            "character": "", "members": [], "lorebooks": [], "mode": None, "settings": settings, "greeting": 0,
        }  # fmt: skip
    values: dict[str, Any] = st.session_state[NEW_KEY]
    return values


def new_tag() -> str:
    return f"{NEW}_{new_values()['settings']['seed']}"


def new_chat_info() -> ChatInfo:
    values = new_values()
    cast = [name for name in dict.fromkeys([values["character"], *values["members"]]) if name]
    mode: Mode = values["mode"] or default_mode(bool(cast))
    return ChatInfo(NEW_ID, "", False, 0.0, 0.0, False, mode, cast[0] if cast else "", values["settings"], "",
                    tuple(cast[1:]), tuple(values["lorebooks"]))  # fmt: skip


def new_chat() -> Chat:
    info = new_chat_info()
    messages: list[Message] = []
    for place, (speaker, greetings) in enumerate(_openings(info)):
        # Their ids are below 0. Those of the first character can be flipped through before the chat is kept.
        ids = tuple(-place * MAX_GREETINGS - number - 1 for number in range(len(greetings)))
        shown = min(new_values()["greeting"], len(greetings) - 1) if place == 0 else 0
        versions = ids if place == 0 else ids[:1]
        messages.append(Message(ids[shown], "assistant", greetings[shown], 0.0, "done", {}, versions, speaker))
    return Chat(info, tuple(messages))


def opened_chat(info: ChatInfo, shown: int) -> CopiedChat:
    """The new chat for the history: each character's greetings, of the first one's the one at `shown`."""
    messages: list[CopiedMessage] = []
    parent: int | None = None
    for place, (speaker, greetings) in enumerate(_openings(info)):
        chosen = min(shown, len(greetings) - 1) if place == 0 else 0
        first = len(messages)
        messages += [
            CopiedMessage(parent, "assistant", text, 0.0, is_shown=number == chosen, speaker=speaker)
            for number, text in enumerate(greetings)
        ]
        parent = first + chosen
    return CopiedChat(tuple(messages), mode=info.mode, character=info.character, members=info.members,
                      settings=info.settings, lorebooks=info.lorebooks)  # fmt: skip


def _openings(info: ChatInfo) -> list[tuple[str, tuple[str, ...]]]:
    """Who greets with which greetings to choose from: the one character, or each of a group."""
    if info.mode == "notebook":
        return []
    if not info.members:
        found = [("", character_prompt(info).greetings())]
    else:
        groups = [(name, group_of(Chat(info, ()), key_of_speaker(name))) for name in info.cast]
        found = [(name, character_prompt(info, group=group).greetings()) for name, group in groups]
    return [(speaker, greetings[:MAX_GREETINGS]) for speaker, greetings in found if greetings]


def forget_new() -> None:
    st.session_state.pop(NEW_KEY, None)
