"""What can be done with one message: the quiet row below it, the menu, editing in place."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import streamlit as st

from core.chat.records import Chat, Message
from ui.chat.feedback import NOTICE_KEY, Notice, show_errors
from ui.chat.new_chat import NEW_ID, new_values
from ui.chat.reading_place import go_to_end, stay_at
from ui.chat.session import EDIT_KEY, is_busy, number_of, read_chat, show_chat, tag_of
from ui.chat.setup import group_of, prompt_context, title_of
from ui.shared.browser import copy_button
from ui.shared.i18n import text, tr
from ui.shared.resources import chat_service, chat_store, engine
from ui.shared.shortcuts import LEAVE, SAVE

LONG_EDIT_CHARS, LONG_EDIT_PX = 1500, 420
ICONS = {
    "edit": "edit",
    "branch": "call_split",
    "delete": "delete",
    "delete_from": "delete_sweep",
    "hide": "visibility_off",
    "unhide": "visibility",
    "regenerate": "refresh",
    "go_on": "read_more",
}


def draw_actions(chat: Chat, message: Message, is_last: bool) -> None:
    """In a row of icons: a message's versions, its text to copy, what suits the last answer, and a menu of the rest."""
    tag = tag_of(chat.info)
    if len(message.versions) > 1:
        _versions(tag, message)
    if message.text:
        copy_button(message.text, f"copy_{tag}_{message.id}", text("chat.do_copy"), text("chat.copied"),
                    text("chat.copy_failed"))  # fmt: skip
    if message.id < NEW_ID:
        return
    if is_last and engine().state.phase == "ready":
        _for_last(chat.info.id, message)
    st.menu_button(tr("chat.more"), _options(message, is_last), key=f"message_menu_{message.id}", format_func=_label,
                   type="tertiary", icon=":material/more_horiz:", on_click=_choose,
                   args=(chat.info.id, message.id, message.text))  # fmt: skip


def _options(message: Message, is_last: bool) -> list[str]:
    return ["edit", "branch", "unhide" if message.is_hidden else "hide", "delete"] + (
        [] if is_last else ["delete_from"]
    )


def _label(option: str) -> str:
    return f":material/{ICONS[option]}: {text(f'chat.do_{option}')}"


def _versions(tag: str, message: Message) -> None:
    place = message.versions.index(message.id)
    last = len(message.versions) - 1
    # The greetings of each new chat have the same numbers.
    name = str(message.id) if message.id > NEW_ID else f"{message.id}_{tag}"
    st.button(tr("chat.version_before"), key=f"version_before_{name}", type="tertiary", disabled=place == 0,
              icon=":material/chevron_left:", help=tr("chat.version_before"), on_click=show_version,
              args=(tag, message.versions[max(0, place - 1)]))  # fmt: skip
    st.caption(f"{place + 1}/{last + 1}", width="content")
    st.button(tr("chat.version_after"), key=f"version_after_{name}", type="tertiary", disabled=place == last,
              icon=":material/chevron_right:", help=tr("chat.version_after"), on_click=show_version,
              args=(tag, message.versions[min(last, place + 1)]))  # fmt: skip


def _for_last(chat: int, message: Message) -> None:
    """A question without an answer can be answered; an answer can be written anew or go on."""
    names = ["reply"] if message.role == "user" else ["regenerate", *(["go_on"] if message.whole.strip() else [])]
    for name in names:
        icon = f":material/{ICONS.get(name, 'refresh')}:"
        st.button(tr(f"chat.do_{name}"), icon=icon, key=f"chat_{name}_{message.id}", type="tertiary",
                  help=tr(f"chat.do_{name}_help"),
                  on_click=_answer, args=(name, chat, message.id))  # fmt: skip


@show_errors
def show_version(tag: str, message: int) -> None:
    """Show a message's version, or one of the greetings of a new chat, which may be kept by now."""
    stay_at(message)
    if message > NEW_ID:
        chat_store().show(message)
    elif (number := number_of(tag)) == NEW_ID:
        new_values()["greeting"] = -message - 1
    else:
        chat_store().show(read_chat(number).messages[0].versions[-message - 1])


@show_errors
def _answer(name: str, number: int, message: int) -> None:
    chat = read_chat(number)
    # What is written anew or goes on keeps its speaker.
    group = group_of(chat)
    own = next((one for one in chat.messages if one.id == message), None)
    speaker = group.speaker_of(own) if group is not None and own is not None and name != "reply" else None
    context = prompt_context(chat, speaker)
    if name == "reply":
        chat_service().reply(chat.info.id, message, context)
    elif name == "go_on":
        chat_service().continue_answer(chat.info.id, message, context)
    else:
        chat_service().regenerate(chat.info.id, message, context)
    go_to_end()


@show_errors
def _choose(chat: int, message: int, words: str) -> None:
    option = st.session_state[f"message_menu_{message}"]
    match option:
        case "edit" if st.session_state.get(EDIT_KEY) != message:
            # A change that was left unfinished goes on, unless the message has got other words since.
            if st.session_state.get(f"chat_edited_{message}", words) != words:
                st.session_state.pop(f"chat_edit_{message}", None)
            st.session_state[f"chat_edited_{message}"] = words
            st.session_state[EDIT_KEY] = message
        case "branch":
            title = text("chat.branch_title", title=title_of(chat_store().info(chat)))
            show_chat(chat_store().branch(message, title))
            st.toast(tr("chat.branched"), icon=":material/call_split:")
        case "hide" | "unhide":
            chat_store().hide(message, option == "hide")
        case "delete" | "delete_from":
            _delete(option, chat, message)


def _delete(option: str, chat: int, message: int) -> None:
    if option == "delete":
        chat_store().delete(message)
    else:
        chat_store().delete_from(message)
    st.session_state[NOTICE_KEY] = Notice("message", message, chat)


def is_edited(message: Message) -> bool:
    return bool(st.session_state.get(EDIT_KEY) == message.id)


def draw_editor(chat: Chat, message: Message) -> None:
    """The message's words to change, in its place. A question can also be asked anew."""
    key = f"chat_edit_{message.id}"
    height: int | Literal["content"] = LONG_EDIT_PX if len(message.text) > LONG_EDIT_CHARS else "content"
    st.text_area(tr("chat.do_edit"), message.text, height, key=key, label_visibility="collapsed",
                 persist_state="session")  # fmt: skip
    can_ask = message.role == "user" and engine().state.phase == "ready" and not is_busy(chat)
    with st.container(horizontal=True):
        if can_ask:
            st.button(tr("chat.edit_ask"), key=f"chat_edit_ask_{message.id}", type="primary", icon=":material/send:",
                      help=f"{tr('chat.edit_ask_help')} {SAVE}", shortcut=SAVE, on_click=_edit_and_resend,
                      args=(chat.info.id, message.id))  # fmt: skip
        st.button(tr("chat.edit_save"), key=f"chat_edit_save_{message.id}", type="secondary" if can_ask else "primary",
                  help=f"{tr('chat.edit_save_help')} {'' if can_ask else SAVE}",
                  shortcut=None if can_ask else SAVE, on_click=_save, args=(message.id,))  # fmt: skip
        st.button(tr("chat.edit_cancel"), key=f"chat_edit_cancel_{message.id}", type="tertiary", shortcut=LEAVE,
                  help=LEAVE, on_click=_leave, args=(message.id,))  # fmt: skip


@show_errors
def _edit_and_resend(number: int, message: int) -> None:
    chat = read_chat(number)
    line = st.session_state[f"chat_edit_{message}"]
    # Who answers follows from what stands before the question, not from what came after it.
    place = next((place for place, one in enumerate(chat.messages) if one.id == message), len(chat.messages))
    before = replace(chat, messages=chat.messages[:place])
    chat_service().edit_and_resend(number, message, line, prompt_context(before, line=line))
    _leave(message)
    go_to_end()


@show_errors
def _save(message: int) -> None:
    chat_store().edit(message, st.session_state[f"chat_edit_{message}"])
    _leave(message)


def _leave(message: int) -> None:
    st.session_state.pop(f"chat_edit_{message}", None)
    if st.session_state.get(EDIT_KEY) == message:
        del st.session_state[EDIT_KEY]
