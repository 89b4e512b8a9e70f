"""What can be done with a whole chat: title, pin, export, delete; the popover at the end of the chat's head."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import streamlit as st

from core.chat.exporting import to_json, to_markdown, to_sillytavern
from core.chat.records import Chat, ChatInfo, CopiedChat, CopiedMessage, Message
from core.chat.store import ChatStore
from ui.chat.actions import delete_chat
from ui.chat.feedback import show_errors
from ui.chat.setup import character_prompt, find_book, name_of, title_of
from ui.chat.transcript import shows_speed
from ui.shared.i18n import text, tr
from ui.shared.identity import key_of, known_value, note_stored
from ui.shared.people import person
from ui.shared.resources import chat_store, preferences

TITLE, PIN, SPEED = "chat_title", "chat_pin", "chat_speed"
FILE_NAME = re.compile(r"[^\w\- ]+")
MAX_FILE_CHARS = 60
MARKDOWN, JSON = "text/markdown", "application/json"


def draw_whole(chat: Chat) -> None:
    info = chat.info
    title_key, pin_key = key_of(TITLE, info.id, info.title), key_of(PIN, info.id, info.is_pinned)
    st.text_input(tr("chat.rename"), key=title_key, help=tr("chat.rename_help"), on_change=_rename,
                  args=(info.id, title_key, info.title))  # fmt: skip
    st.toggle(tr("chat.pin"), key=pin_key, on_change=_pin, args=(info.id, pin_key))
    # One setting for all chats; each chat still has a toggle of its own, like the fields beside it.
    speed_key = key_of(SPEED, info.id, shows_speed())
    st.toggle(tr("chat.show_speed"), key=speed_key, on_change=_set_speed, args=(speed_key,))
    # The file is made on request, outside of the page's run, where nothing tells whose page it was.
    store, owner, you = chat_store(), person(), text("chat.you")
    if info.mode != "notebook":
        st.download_button(tr("chat.export_tavern"), lambda: _tavern(store, info, owner), _file_name(info, "jsonl"),
                           JSON, key=f"chat_export_tavern_{info.id}", help=tr("chat.export_tavern_help"),
                           on_click="ignore", icon=":material/groups:", width="stretch")  # fmt: skip
    st.download_button(tr("chat.export_markdown"), lambda: _markdown(store, info, owner, you), _file_name(info, "md"),
                       MARKDOWN, key=f"chat_export_markdown_{info.id}", help=tr("chat.export_markdown_help"),
                       on_click="ignore", icon=":material/article:", width="stretch")  # fmt: skip
    st.download_button(tr("chat.export_json"), lambda: to_json(_copy(store, info)), _file_name(info, "json"),
                       JSON, key=f"chat_export_json_{info.id}", help=tr("chat.export_json_help"),
                       on_click="ignore", icon=":material/data_object:", width="stretch")  # fmt: skip
    st.button(tr("chat.delete"), key=f"chat_delete_{info.id}", icon=":material/delete:", width="stretch",
              on_click=delete_chat, args=(info.id,))  # fmt: skip


def _file_name(info: ChatInfo, ending: str) -> str:
    return (FILE_NAME.sub("", title_of(info))[:MAX_FILE_CHARS].strip() or "chat") + f".{ending}"


def _markdown(store: ChatStore, info: ChatInfo, owner: str, you: str) -> str:
    prompt, chat = character_prompt(info, owner=owner), store.read(info.id)
    user = prompt.person_name or you
    return to_markdown(chat, user, prompt.names.char, _speakers(_of_characters(chat.messages)))


def _tavern(store: ChatStore, info: ChatInfo, owner: str) -> str:
    names, chat = character_prompt(info, owner=owner).names, _copy(store, info)
    speakers = _speakers([*info.cast, *_of_characters(chat.messages)])
    return to_sillytavern(chat, names.user, names.char, speakers)


def _copy(store: ChatStore, info: ChatInfo) -> CopiedChat:
    """The chat for a file, with the names of its lorebooks: elsewhere nobody knows their keys."""
    chat = store.copy(info.id)
    found = {name: find_book(name) for name in chat.lorebooks}
    return replace(chat, lorebooks=tuple(name if one is None else one.name for name, one in found.items()))


def _of_characters(messages: Iterable[Message | CopiedMessage]) -> list[str]:
    """How messages name their characters; a person's name is their own, though a character may be called so."""
    return [message.speaker for message in messages if message.role != "user"]


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
