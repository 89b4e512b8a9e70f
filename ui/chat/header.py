"""The head of the chat page: who speaks and how, the generation settings, what can be done with the whole chat."""

from __future__ import annotations

import re
from collections.abc import Iterable

import streamlit as st

from core.chat.chat_formats import BY_NAME, find_format
from core.chat.database import ChatStoreError
from core.chat.exporting import to_json, to_markdown, to_sillytavern
from core.chat.model_prompt import ModelPrompt, choose_format, chosen_format, read_model_prompt
from core.chat.modes import CHAT_MODEL_NAME
from core.chat.records import MODES, Chat, ChatInfo
from core.chat.store import ChatStore
from core.common.errors import DeckError
from ui.chat.actions import delete_chat
from ui.chat.cast import choose_members
from ui.chat.chat_settings import change_system
from ui.chat.feedback import show_errors
from ui.chat.new_chat import NEW_ID, new_values
from ui.chat.portraits import Faces
from ui.chat.sampling_form import sampling_form
from ui.chat.session import begin_new, number_of, tag_of
from ui.chat.setup import character_prompt, find_character, name_of
from ui.chat.transcript import shows_speed
from ui.shared.fragment import redraw_alone
from ui.shared.i18n import text, tr
from ui.shared.identity import key_of, known_value, note_stored
from ui.shared.markdown import escape
from ui.shared.people import person
from ui.shared.resources import characters, chat_store, engine, preferences

FACE_PX, MAX_FACES = 44, 4
CHARACTER, MODE, SYSTEM, FORMAT = "chat_character", "chat_mode", "chat_system", "chat_format"
TITLE, PIN, SPEED = "chat_title", "chat_pin", "chat_speed"
FILE_NAME = re.compile(r"[^\w\- ]+")
MAX_FILE_CHARS = 60
MARKDOWN, JSON = "text/markdown", "application/json"


def title_of(info: ChatInfo) -> str:
    """The chat's title; one of its character where nothing was said yet."""
    if info.title:
        return info.title
    if len(info.cast) > 1:
        return ", ".join(name_of(name) for name in info.cast)
    found = find_character(info.character)
    return found[1].name if found else text(f"chat.new_{'notebook' if info.mode == 'notebook' else 'title'}")


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
            _draw_who(chat, tag)
        with st.popover(tr("chat.settings"), key=f"chat_settings_{tag}", icon=":material/tune:"):
            redraw_alone(_draw_sampling, tag)
        if info.id != NEW_ID:
            with st.popover(":material/more_horiz:", key=f"chat_whole_{tag}", help=tr("chat.this_chat")):
                _draw_whole(chat)
    _say_unknown_format(info)
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


# Who speaks ---------------------------------------------------------------------------------------------------------


def _draw_who(chat: Chat, tag: str) -> None:
    info = chat.info
    _choose_character(info, tag)
    if info.mode != "notebook" and info.character:
        choose_members(info, tag)
    _choose_mode(chat, tag)
    if info.mode != "notebook":
        _choose_format()
        system = str(info.settings.get("system", ""))
        key = key_of(SYSTEM, tag, system, str.strip)
        st.text_area(tr("chat.system"), key=key, height=100, placeholder=tr("chat.system_placeholder"),
                     help=tr("chat.system_help"), on_change=_keep_system, args=(tag, key, system))  # fmt: skip


def _choose_character(info: ChatInfo, tag: str) -> None:
    try:
        entries = [entry for entry in characters().entries() if entry.character is not None]
    except DeckError:
        entries = []
    names = {"": text("chat.no_character"), **{entry.key: entry.name for entry in entries}}
    found = find_character(info.character)
    key = key_of(CHARACTER, tag, found[0] if found and found[0] in names else "")
    st.selectbox(tr("chat.character"), list(names), key=key, format_func=lambda name: names.get(name, name),
                 on_change=_set_character, args=(tag, key))  # fmt: skip


def _choose_mode(chat: Chat, tag: str) -> None:
    # A notebook has one text and a chat has messages: neither becomes the other.
    is_notebook = chat.info.mode == "notebook"
    is_open = chat.info.id == NEW_ID or not chat.messages
    modes = [mode for mode in MODES if is_open or (mode == "notebook") == is_notebook]
    key = key_of(MODE, tag, chat.info.mode)
    st.selectbox(tr("chat.mode"), modes, key=key, format_func=lambda mode: text(f"mode.{mode}"),
                 on_change=_set_mode, args=(tag, key))  # fmt: skip
    st.caption(tr(f"mode.{chat.info.mode}_help"))


def _loaded_model() -> ModelPrompt | None:
    """How the loaded model reads prompts; None where none is there, or its files cannot be used."""
    try:
        return read_model_prompt(engine().state, engine().server_counter)
    except DeckError:
        return None


def _choose_format() -> None:
    """The format of a loaded model that brings no template. It is the model's, so it holds in every chat."""
    model = _loaded_model()
    if model is None or model.folder is None or model.template.has_own:
        return
    name, chosen = model.folder.name, chosen_format(model.folder.name)
    key = key_of(FORMAT, name, chosen if chosen in BY_NAME else "")
    by_itself = text("chat.format_found", name=found.name) if (found := find_format(model.folder)) else ""
    st.selectbox(tr("chat.format"), ["", *BY_NAME], key=key, help=tr("chat.format_help"), on_change=_set_format,
                 format_func=lambda one: one or by_itself or text("chat.format_unknown"),
                 args=(name, key))  # fmt: skip


def _say_unknown_format(info: ChatInfo) -> None:
    """That a model that was taught to chat is asked in plain lines, because nobody knows its format."""
    if info.mode != "chat" or (model := _loaded_model()) is None:
        return
    if model.template.source is None and CHAT_MODEL_NAME.search(model.name):
        st.caption(f":material/help: {tr('chat.format_missing', model=model.name)}")


@show_errors
def _set_format(model: str, key: str) -> None:
    choose_format(model, st.session_state[key])


@show_errors
def _set_character(tag: str, key: str) -> None:
    character, number = st.session_state[key], number_of(tag)
    if number == NEW_ID:
        new_values().update(character=character, greeting=0, mode=None)
    else:
        chat_store().set_character(number, character)


@show_errors
def _set_mode(tag: str, key: str) -> None:
    mode, number = st.session_state[key], number_of(tag)
    if number == NEW_ID:
        new_values()["mode"] = mode
    else:
        chat_store().set_mode(number, mode)


@show_errors
def _keep_system(tag: str, key: str, drawn: str) -> None:
    system = st.session_state[key].strip()
    change_system(tag, system, known_value(SYSTEM, tag, drawn))
    note_stored(SYSTEM, tag, system)


# The whole chat -----------------------------------------------------------------------------------------------------


def _draw_whole(chat: Chat) -> None:
    info = chat.info
    title_key, pin_key = key_of(TITLE, info.id, info.title), key_of(PIN, info.id, info.is_pinned)
    st.text_input(tr("chat.rename"), key=title_key, help=tr("chat.rename_help"), on_change=_rename,
                  args=(info.id, title_key, info.title))  # fmt: skip
    st.toggle(tr("chat.pin"), key=pin_key, on_change=_pin, args=(info.id, pin_key))
    # One setting for all chats; each chat still has a toggle of its own, like the fields beside it.
    speed_key = key_of(SPEED, info.id, shows_speed())
    st.toggle(tr("chat.show_speed"), key=speed_key, on_change=_set_speed, args=(speed_key,))
    # The file is made on request, outside of the page's run, where nothing tells whose page it was.
    store, owner = chat_store(), person()
    if info.mode != "notebook":
        st.download_button(tr("chat.export_tavern"), lambda: _tavern(store, info, owner), _file_name(info, "jsonl"),
                           JSON, key=f"chat_export_tavern_{info.id}", help=tr("chat.export_tavern_help"),
                           on_click="ignore", icon=":material/groups:", width="stretch")  # fmt: skip
    st.download_button(tr("chat.export_markdown"), lambda: _markdown(store, info, owner), _file_name(info, "md"),
                       MARKDOWN, key=f"chat_export_markdown_{info.id}", help=tr("chat.export_markdown_help"),
                       on_click="ignore", icon=":material/article:", width="stretch")  # fmt: skip
    st.download_button(tr("chat.export_json"), lambda: to_json(store.copy(info.id)), _file_name(info, "json"),
                       JSON, key=f"chat_export_json_{info.id}", help=tr("chat.export_json_help"),
                       on_click="ignore", icon=":material/data_object:", width="stretch")  # fmt: skip
    st.button(tr("chat.delete"), key=f"chat_delete_{info.id}", icon=":material/delete:", width="stretch",
              on_click=delete_chat, args=(info.id,))  # fmt: skip


def _file_name(info: ChatInfo, ending: str) -> str:
    return (FILE_NAME.sub("", title_of(info))[:MAX_FILE_CHARS].strip() or "chat") + f".{ending}"


def _markdown(store: ChatStore, info: ChatInfo, owner: str) -> str:
    names, chat = character_prompt(info, owner=owner).names, store.read(info.id)
    return to_markdown(chat, names.user, names.char, _speakers(message.speaker for message in chat.messages))


def _tavern(store: ChatStore, info: ChatInfo, owner: str) -> str:
    names, chat = character_prompt(info, owner=owner).names, store.copy(info.id)
    speakers = _speakers([*info.cast, *(message.speaker for message in chat.messages)])
    return to_sillytavern(chat, names.user, names.char, speakers)


def _speakers(names: Iterable[str]) -> dict[str, str]:
    return {name: name_of(name) for name in set(names) if name}


@show_errors
def _rename(number: int, key: str, drawn: str) -> None:
    chat_store().rename(number, st.session_state[key], known_value(TITLE, number, drawn))
    note_stored(TITLE, number, chat_store().info(number).title)


@show_errors
def _pin(number: int, key: str) -> None:
    chat_store().pin(number, st.session_state[key])


def _set_speed(key: str) -> None:
    preferences().set("chat", "speed", "on" if st.session_state[key] else "off")
