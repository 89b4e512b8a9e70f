"""Who speaks in a chat and how the model is asked: the popover of the chat's head."""

from __future__ import annotations

import streamlit as st

from core.chat.modes import CHAT_MODEL_NAME
from core.chat.records import MODES, ChatInfo
from core.common.errors import DeckError
from core.personas.user import read_personas
from ui.chat.cast import choose_members
from ui.chat.chat_settings import change_settings, change_system
from ui.chat.feedback import show_errors
from ui.chat.new_chat import NEW_ID, new_values
from ui.chat.session import number_of
from ui.chat.setup import find_character, key_of_speaker, loaded_model
from ui.shared.chat_format import draw_chat_format
from ui.shared.choices import told_apart
from ui.shared.i18n import text, tr
from ui.shared.identity import key_of, known_value, note_stored
from ui.shared.people import person
from ui.shared.personas import persona_label, persona_names
from ui.shared.resources import characters, chat_store

CHARACTER, PERSONA, MODE, SYSTEM, FORMAT = "chat_character", "chat_persona", "chat_mode", "chat_system", "chat_format"


def draw_who(info: ChatInfo, tag: str) -> None:
    """Not for a notebook, in which nobody speaks."""
    _choose_character(info, tag)
    if info.character:
        choose_members(info, tag)
    _choose_persona(info, tag)
    _choose_mode(info, tag)
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
    names = told_apart({"": text("chat.no_character"), **{entry.key: entry.name for entry in entries}})
    found = find_character(info.character)
    key = key_of(CHARACTER, tag, found[0] if found and found[0] in names else "", words=names.values())
    st.selectbox(tr("chat.character"), list(names), key=key, format_func=lambda name: names.get(name, name),
                 on_change=_set_character, args=(tag, key))  # fmt: skip


def _choose_persona(info: ChatInfo, tag: str) -> None:
    """Who the person is in this chat, where they have several personas."""
    personas = read_personas(person())
    if len(personas.by_key) < 2:
        return
    chosen = str(info.settings.get("persona", ""))
    usual = persona_label(personas.by_key[personas.choose("", key_of_speaker(info.character))])
    names = told_apart({"": text("chat.persona_usual", name=usual), **persona_names(personas)})
    key = key_of(PERSONA, tag, chosen if chosen in personas.by_key else "", words=names.values())
    st.selectbox(tr("chat.persona"), list(names), key=key, help=tr("chat.persona_help"),
                 format_func=lambda one: names.get(one, one), on_change=_set_persona, args=(tag, key))  # fmt: skip


def _set_persona(tag: str, key: str) -> None:
    change_settings(tag, persona=st.session_state[key] or None)


def _choose_mode(info: ChatInfo, tag: str) -> None:
    # A notebook has one text and a chat has messages: neither becomes the other.
    modes = [mode for mode in MODES if mode != "notebook"]
    key = key_of(MODE, tag, info.mode)
    st.selectbox(tr("chat.mode"), modes, key=key, format_func=lambda mode: text(f"mode.{mode}"),
                 on_change=_set_mode, args=(tag, key))  # fmt: skip
    st.caption(tr(f"mode.{info.mode}_help"))


def _choose_format() -> None:
    """The format of a loaded model that brings no template. It is the model's, so it holds in every chat."""
    model = loaded_model()
    if model is not None and model.folder is not None:
        draw_chat_format(model.folder, "chat")


def say_unknown_format(info: ChatInfo) -> None:
    """That a model that was taught to chat is asked in plain lines, because nobody knows its format."""
    if info.mode != "chat" or (model := loaded_model()) is None:
        return
    if model.template.source is None and CHAT_MODEL_NAME.search(model.name):
        st.caption(f":material/help: {tr('chat.format_missing', model=model.name)}")


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
