"""The head of the chat page: its title and faces, and the popovers that change the chat."""

from __future__ import annotations

import streamlit as st

from core.chat.database import ChatStoreError
from core.chat.records import Chat, ChatInfo
from ui.chat.new_chat import NEW_ID
from ui.chat.portraits import Faces
from ui.chat.sampling_form import sampling_form
from ui.chat.session import begin_new, tag_of
from ui.chat.setup import find_character, title_of
from ui.chat.who import draw_who, say_unknown_format
from ui.chat.whole_chat import draw_whole
from ui.shared.fragment import redraw_alone
from ui.shared.i18n import tr
from ui.shared.markdown import escape

FACE_PX, MAX_FACES = 44, 4


def draw_head(chat: Chat, faces: Faces) -> None:
    info, tag = chat.info, tag_of(chat.info)
    with st.container(horizontal=True, vertical_alignment="center"):
        cast = [faces.speakers.get(name) for name in chat.info.cast] if len(chat.info.cast) > 1 else [faces.char]
        for face in cast[:MAX_FACES]:
            if face:
                st.image(face, width=FACE_PX)
        st.header(escape(title_of(info)), anchor=False)
    with st.container(horizontal=True, gap="small"):
        st.button(tr("chat.new"), key="chat_new", icon=":material/add:", disabled=info.id == NEW_ID,
                  on_click=begin_new)  # fmt: skip
        with st.popover(_who(info), key=f"chat_who_{tag}", icon=":material/theater_comedy:"):
            draw_who(chat, tag)
        with st.popover(tr("chat.settings"), key=f"chat_settings_{tag}", icon=":material/tune:"):
            redraw_alone(_draw_sampling, tag)
        if info.id != NEW_ID:
            with st.popover(":material/more_horiz:", key=f"chat_whole_{tag}", help=tr("chat.this_chat")):
                draw_whole(chat)
    say_unknown_format(info)
    for name in info.cast:
        if find_character(name) is None:
            kind = "member" if len(info.cast) > 1 else "character"
            st.warning(tr(f"chat.{kind}_gone", name=name), icon=":material/person_off:")


def _draw_sampling(tag: str) -> None:
    """The chat as it is now: this part of the page may be drawn again alone, and the chat be gone by then."""
    try:
        sampling_form(tag)
    except ChatStoreError:
        st.rerun()


def _who(info: ChatInfo) -> str:
    if len(info.cast) > 1 and info.mode != "notebook":
        return tr("chat.group", count=len(info.cast))
    found = find_character(info.character)
    return escape(found[1].name) if found and info.mode != "notebook" else tr(f"mode.{info.mode}")
