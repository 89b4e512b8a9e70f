"""The chats that are being answered, in the sidebar of every page: their titles lead to them."""

from __future__ import annotations

import streamlit as st

from core.chat.database import ChatStoreError
from core.chat.records import ChatInfo
from ui.chat.history import chat_links
from ui.shared.engine_status import ANSWERING_POLL_S
from ui.shared.fragment import redraw_every
from ui.shared.resources import chat_service, chat_store, engine

# A title that is too wide ends in dots: without it the browser cuts it in the middle of a letter.
LINK_STYLE = """<style>
[class*="st-key-chat_answering"] a p { overflow: hidden; text-overflow: ellipsis; }
</style>"""


def sidebar_answering() -> None:
    """Below the engine's state, which draws the page again when an answer begins or ends."""
    if any(answer.is_for_page for answer in engine().running_answers):
        st.html(LINK_STYLE)
        redraw_every(ANSWERING_POLL_S, _draw_answered)


def _draw_answered() -> None:
    with st.container(gap="small", key="chat_answering"):
        chat_links(answered_chats())


def answered_chats() -> list[ChatInfo]:
    """This person's chats that are being answered. Those of others count in the engine's state alone."""
    found = []
    for number in chat_service().busy_chats():
        try:
            found.append(chat_store().info(number))
        except ChatStoreError:
            continue
    return found
