"""A group: its characters' faces above the input, each of which speaks when it is clicked; who belongs to it."""

from __future__ import annotations

import streamlit as st

from core.chat.foreign import MAX_MEMBERS
from core.chat.group import ORDERS, next_speaker
from core.chat.records import Chat, ChatInfo
from core.common.errors import DeckError
from ui.chat.actions import greet, speak
from ui.chat.chat_settings import change_settings
from ui.chat.feedback import show_errors
from ui.chat.new_chat import NEW_ID, new_values
from ui.chat.portraits import Faces
from ui.chat.session import is_busy, number_of, tag_of
from ui.chat.setup import greetings_of, group_of, key_of_speaker, name_of, order_of
from ui.shared.choices import told_apart
from ui.shared.i18n import text, tr
from ui.shared.icon_buttons import icons
from ui.shared.identity import key_of, known_value, note_stored
from ui.shared.markdown import escape, shortened
from ui.shared.resources import characters, chat_store, engine

FACE_PX, GAP_PX, NAME_CHARS = 36, 8, 18
# A click on the face is one on the name beside it. In a narrow window a large group is one row to scroll.
FACE_STYLE = f"""<style>
[class*="st-key-chat_cast_"] {{ flex-wrap: nowrap; overflow-x: auto; }}
[class*="st-key-chat_cast_"] > * {{ flex: 0 0 auto; }}
[class*="st-key-chat_speak_"] button {{ position: relative; }}
[class*="st-key-chat_speak_"] button::before {{
  content: ""; position: absolute; inset: 0 100% 0 -{FACE_PX + GAP_PX}px;
}}
</style>"""
MEMBERS, ORDER = "chat_members", "chat_order"


def draw_cast(chat: Chat, faces: Faces) -> None:
    """The faces of those who may speak next; the one whose turn it is stands out."""
    group, tag = group_of(chat), tag_of(chat.info)
    if group is None:
        return
    order = order_of(chat.info)
    coming = None if order == "manual" else next_speaker(group, chat.messages, order)
    is_ready = engine().state.phase == "ready" and not (chat.info.id != NEW_ID and is_busy(chat))
    st.html(FACE_STYLE)
    with st.container(horizontal=True, gap="small", vertical_alignment="center", key=f"chat_cast_{tag}"):
        said = {group.speaker_of(message) for message in chat.messages if message.role == "assistant"}
        for name in chat.info.cast:
            _draw_face(name, key_of_speaker(name) == coming, is_ready, faces, tag)
            key = key_of_speaker(name)
            if chat.info.id != NEW_ID and key not in said and not is_busy(chat) and greetings_of(chat, key):
                with icons(f"greet_{tag}_{name}"):
                    words = tr("chat.greet", name=name_of(name))
                    st.button(words, key=f"chat_greet_{tag}_{name}", type="tertiary", icon=":material/waving_hand:",
                              help=words, on_click=greet, args=(tag, key))  # fmt: skip


def _draw_face(name: str, is_next: bool, is_ready: bool, faces: Faces, tag: str) -> None:
    called = name_of(name)
    with st.container(horizontal=True, gap="xxsmall", vertical_alignment="center", width="content"):
        if face := faces.speakers.get(name):
            st.image(face, width=FACE_PX, alt=called)
        st.button(escape(shortened(called, NAME_CHARS)), key=f"chat_speak_{tag}_{name}", wrap=False,
                  type="secondary" if is_next else "tertiary", disabled=not is_ready,
                  icon=None if faces.speakers.get(name) else ":material/smart_toy:",
                  help=tr("chat.speak_next" if is_next else "chat.speak", name=called),
                  on_click=speak, args=(tag, key_of_speaker(name)))  # fmt: skip


def choose_members(info: ChatInfo, tag: str) -> None:
    """Further characters of the chat, and how it is decided who of them speaks."""
    try:
        entries = [entry for entry in characters().entries() if entry.character is not None]
    except DeckError:
        entries = []
    # A member keeps the name by which the chat calls it, and its place in the list: a browser shows it by that.
    called = {key_of_speaker(name): name for name in info.members}
    first = key_of_speaker(info.character)
    names = {called.get(entry.key, entry.key): entry.name for entry in entries if entry.key != first}
    # Those whose files are gone stay, until they are taken out.
    names = told_apart(names | {name: name for name in info.members if name not in names})
    key = key_of(MEMBERS, tag, list(info.members), words=names.values())
    st.multiselect(tr("chat.members"), list(names), key=key, format_func=lambda name: names.get(name, name),
                   max_selections=MAX_MEMBERS - 1, placeholder=tr("chat.members_placeholder"),
                   help=tr("chat.members_help"), on_change=_set_members,
                   args=(tag, key, list(info.members)))  # fmt: skip
    if len(info.cast) > 1:
        order_key = key_of(ORDER, tag, order_of(info))
        st.selectbox(tr("chat.order"), ORDERS, key=order_key, format_func=lambda order: text(f"chat.order_{order}"),
                     on_change=_set_order, args=(tag, order_key))  # fmt: skip


@show_errors
def _set_members(tag: str, key: str, drawn: list[str]) -> None:
    members, number = list(st.session_state[key]), number_of(tag)
    if number == NEW_ID:
        new_values().update(members=members, mode=None)
    else:
        chat_store().set_members(number, members, known_value(MEMBERS, tag, drawn))
        note_stored(MEMBERS, tag, members)


def _set_order(tag: str, key: str) -> None:
    change_settings(tag, order=st.session_state[key])
