"""The head of the chat page: who speaks and how, the generation settings, what can be done with the whole chat."""

from __future__ import annotations

import re

import streamlit as st

from core.chat.exporting import to_json, to_markdown
from core.chat.records import MODES, Chat, ChatInfo
from core.errors import DeckError
from ui.chat import (
    NEW_ID,
    begin_new,
    change_settings,
    current_chat,
    new_values,
    told,
)
from ui.chat_asking import delete_chat
from ui.chat_messages import shows_speed
from ui.chat_setup import cast_of, find_character
from ui.fragment import redraw_alone
from ui.i18n import text, tr
from ui.markdown import escape
from ui.portraits import Faces
from ui.resources import characters, chat_store, preferences
from ui.sampling import sampling_form

FACE_PX = 44
CHARACTER_KEY, MODE_KEY, SYSTEM_KEY = "chat_character", "chat_mode", "chat_system"
TITLE_KEY, PIN_KEY, SPEED_KEY = "chat_title", "chat_pin", "chat_speed"
FILE_NAME = re.compile(r"[^\w\- ]+")
MAX_FILE_CHARS = 60
MARKDOWN, JSON = "text/markdown", "application/json"


def title_of(info: ChatInfo) -> str:
    """The chat's title; one of its character where nothing was said yet."""
    if info.title:
        return info.title
    found = find_character(info.character)
    return found[1].name if found else text(f"chat.new_{'notebook' if info.mode == 'notebook' else 'title'}")


def draw_head(chat: Chat, faces: Faces) -> None:
    info = chat.info
    with st.container(horizontal=True, vertical_alignment="center"):
        if faces.char:
            st.image(faces.char, width=FACE_PX)
        st.header(escape(title_of(info)), anchor=False)
    with st.container(horizontal=True, gap="small"):
        st.button(tr("chat.new"), key="chat_new", icon=":material/add:", disabled=info.id == NEW_ID,
                  on_click=begin_new)  # fmt: skip
        with st.popover(_who(info), key="chat_who", icon=":material/theater_comedy:"):
            _draw_who(chat)
        with st.popover(tr("chat.settings"), key="chat_settings", icon=":material/tune:"):
            redraw_alone(sampling_form, current_chat, told(change_settings))
        if info.id != NEW_ID:
            with st.popover(":material/more_horiz:", key="chat_whole", help=tr("chat.this_chat")):
                _draw_whole(chat)
    if info.character and find_character(info.character) is None:
        st.warning(tr("chat.character_gone", name=info.character), icon=":material/person_off:")


def _who(info: ChatInfo) -> str:
    found = find_character(info.character)
    return escape(found[1].name) if found and info.mode != "notebook" else tr(f"mode.{info.mode}")


# Who speaks ---------------------------------------------------------------------------------------------------------


def _draw_who(chat: Chat) -> None:
    info = chat.info
    _choose_character(info)
    _choose_mode(chat)
    if info.mode != "notebook":
        st.session_state[SYSTEM_KEY] = info.settings.get("system", "")
        st.text_area(tr("chat.system"), key=SYSTEM_KEY, height=100, placeholder=tr("chat.system_placeholder"),
                     help=tr("chat.system_help"), on_change=_keep_system, args=(info,))  # fmt: skip


def _choose_character(info: ChatInfo) -> None:
    try:
        entries = [entry for entry in characters().entries() if entry.character is not None]
    except DeckError:
        entries = []
    names = {"": text("chat.no_character"), **{entry.key: entry.name for entry in entries}}
    found = find_character(info.character)
    st.session_state[CHARACTER_KEY] = found[0] if found and found[0] in names else ""
    st.selectbox(tr("chat.character"), list(names), key=CHARACTER_KEY, format_func=lambda key: names.get(key, key),
                 on_change=_set_character, args=(info,))  # fmt: skip


def _choose_mode(chat: Chat) -> None:
    # A notebook has one text and a chat has messages: neither becomes the other.
    is_notebook = chat.info.mode == "notebook"
    is_open = chat.info.id == NEW_ID or not chat.messages
    modes = [mode for mode in MODES if is_open or (mode == "notebook") == is_notebook]
    st.session_state[MODE_KEY] = chat.info.mode
    st.selectbox(tr("chat.mode"), modes, key=MODE_KEY, format_func=lambda mode: text(f"mode.{mode}"),
                 on_change=_set_mode, args=(chat.info,))  # fmt: skip
    st.caption(tr(f"mode.{chat.info.mode}_help"))


@told
def _set_character(info: ChatInfo) -> None:
    key = st.session_state[CHARACTER_KEY]
    if info.id == NEW_ID:
        new_values().update(character=key, greeting=0, mode=None)
    else:
        # A person's own choice of plain lines or of a notebook stays; else the model's format follows the character.
        mode = info.mode if info.mode in ("chat", "notebook") else "chat-instruct" if key else "instruct"
        chat_store().set_mode(info.id, mode, key)


@told
def _set_mode(info: ChatInfo) -> None:
    mode = st.session_state[MODE_KEY]
    if info.id == NEW_ID:
        new_values()["mode"] = mode
    else:
        chat_store().set_mode(info.id, mode, info.character)


@told
def _keep_system(info: ChatInfo) -> None:
    change_settings(info, system=st.session_state[SYSTEM_KEY].strip() or None)


# The whole chat -----------------------------------------------------------------------------------------------------


def _draw_whole(chat: Chat) -> None:
    info = chat.info
    st.session_state[TITLE_KEY], st.session_state[PIN_KEY] = info.title, info.is_pinned
    st.text_input(tr("chat.rename"), key=TITLE_KEY, help=tr("chat.rename_help"), on_change=_rename,
                  args=(info.id,))  # fmt: skip
    st.toggle(tr("chat.pin"), key=PIN_KEY, on_change=_pin, args=(info.id,))
    st.session_state[SPEED_KEY] = shows_speed()
    st.toggle(tr("chat.show_speed"), key=SPEED_KEY, on_change=_set_speed)
    st.download_button(tr("chat.export_markdown"), lambda: _markdown(info), _file_name(info, "md"), MARKDOWN,
                       key="chat_export_markdown", help=tr("chat.export_markdown_help"), on_click="ignore",
                       icon=":material/article:", width="stretch")  # fmt: skip
    st.download_button(tr("chat.export_json"), lambda: to_json(chat_store().copy(info.id)), _file_name(info, "json"),
                       JSON, key="chat_export_json", help=tr("chat.export_json_help"),
                       on_click="ignore", icon=":material/data_object:", width="stretch")  # fmt: skip
    st.button(tr("chat.delete"), key="chat_delete", icon=":material/delete:", width="stretch",
              on_click=delete_chat, args=(info.id,))  # fmt: skip


def _file_name(info: ChatInfo, ending: str) -> str:
    return (FILE_NAME.sub("", title_of(info))[:MAX_FILE_CHARS].strip() or "chat") + f".{ending}"


def _markdown(info: ChatInfo) -> str:
    names = cast_of(info).names
    return to_markdown(chat_store().read(info.id), names.user, names.char)


@told
def _rename(number: int) -> None:
    chat_store().rename(number, st.session_state[TITLE_KEY])


@told
def _pin(number: int) -> None:
    chat_store().pin(number, st.session_state[PIN_KEY])


def _set_speed() -> None:
    preferences().set("chat", "speed", "on" if st.session_state[SPEED_KEY] else "off")
