"""Which chat this tab shows, a new one or one of the history.

The address names the chat (?chat=3, ?chat=new, ?chat=new&character=Ada), so that a reloaded or reopened tab finds it
again. A new chat is this tab's alone until something is said in it: empty chats are not kept.

What a button or a field does is for the chat that it was drawn for, whichever the tab shows by then: it is given the
chat's tag, as its key is.
"""

from __future__ import annotations

import time
from hashlib import sha256

import streamlit as st

from core.chat.database import ChatStoreError
from core.chat.records import Chat, ChatInfo, Mode
from ui.chat.feedback import ERROR_KEY, FAILED_KEY, LEFT_KEY
from ui.chat.new_chat import NEW, NEW_ID, forget_new, new_chat, new_chat_info, new_tag, new_values, opened_chat
from ui.chat.setup import default_mode
from ui.shared.people import person
from ui.shared.resources import chat_service, chat_store, recorder

PARAM, CHARACTER = "chat", "character"
# This tab's chat: its id, or NEW_ID for one that is not in the history yet; and the last message that it has drawn.
CHAT_KEY, SEEN_KEY = "chat_number", "chat_seen"
INPUT_KEY, FILLED_KEY = "chat_input", "chat_filled"
# The tags of this tab's new chats by the number that they have in the history.
BORN_KEY = "chat_born"
# Of the chat that is shown: the message being edited or found, and how many more than the last few are drawn.
EDIT_KEY, FOUND_KEY, MORE_KEY = "chat_editing", "chat_found", "chat_shown"
MAX_NUMBER_DIGITS = 15
# A browser that sends two steps at once, such as a text and a click, names in the second one the address from before
# the first: a chat that is new there is the one that was kept a moment ago.
KEPT_KEY, STALE_S = "chat_kept", 2.0
END_S = 2.0


# Which chat ---------------------------------------------------------------------------------------------------------


def chosen_number() -> int:
    """The id of this tab's chat: the address's, else the one shown last, else one that is being answered."""
    if PARAM in st.query_params:
        name = st.query_params[PARAM]
        number, kept_s = st.session_state.get(KEPT_KEY, (NEW_ID, 0.0))
        if name == NEW and time.monotonic() - kept_s < STALE_S:
            return int(number)
        return int(name) if name.isdecimal() and len(name) <= MAX_NUMBER_DIGITS else NEW_ID
    if CHAT_KEY in st.session_state:
        return int(st.session_state[CHAT_KEY])
    return next((info.id for info in chat_store().chats() if chat_service().is_busy(info.id)), NEW_ID)


def tag_of(info: ChatInfo) -> str:
    """The name of a chat in the keys of widgets: its number, or a name of its own for each new chat."""
    return str(info.id) if info.id != NEW_ID else new_tag()


def fill_input(text: str) -> None:
    """Put a text into the input of the chat that is shown."""
    st.session_state[INPUT_KEY] = text
    st.session_state[FILLED_KEY] = (filled()[0] + 1, text)


def filled() -> tuple[int, str]:
    """How often the input was filled, and with what at last."""
    found: tuple[int, str] = st.session_state.get(FILLED_KEY, (0, ""))
    return found


def place_of(info: ChatInfo) -> str:
    """Where the browser keeps what is typed in a chat. A new chat's tag is another one after a reload.

    So all new chats are one place, but each person's own: somebody else may sign in in the same tab.
    """
    if info.id != NEW_ID:
        return tag_of(info)
    return f"{NEW}_{sha256(person().encode()).hexdigest()[:16]}"


def born_tag(info: ChatInfo) -> str:
    """The tag that the chat had while it was this tab's new one."""
    return _born().get(info.id, tag_of(info))


def number_of(tag: str) -> int:
    """The number that the chat of a `tag` has by now; NEW_ID for this tab's new one. Raises ChatStoreError."""
    if tag.isdecimal():
        return int(tag)
    for number, born in _born().items():
        if born == tag:
            return number
    if tag != new_tag():
        raise ChatStoreError("chat_gone")
    return NEW_ID


def chat_of(tag: str) -> Chat:
    """The chat of a `tag` as it is now. Raises ChatStoreError where it is gone."""
    number = number_of(tag)
    return new_chat() if number == NEW_ID else read_chat(number)


def info_of(tag: str) -> ChatInfo:
    number = number_of(tag)
    return new_chat_info() if number == NEW_ID else chat_store().info(number)


def _born() -> dict[int, str]:
    born: dict[int, str] = st.session_state.setdefault(BORN_KEY, {})
    return born


def current_chat() -> Chat:
    """This tab's chat, a new one where the history lacks it. Raises ChatStoreError where the history is unreadable."""
    number = chosen_number()
    if number == NEW_ID:
        return new_chat()
    try:
        return read_chat(number)
    except ChatStoreError as error:
        if error.key != "chat_gone":
            raise
        return new_chat()


def read_chat(number: int) -> Chat:
    """A chat as it is now. Waits for an answer that has just ended until the recorder has written it."""
    chat = chat_store().read(number)
    last = chat.messages[-1] if chat.messages else None
    if last is None or last.state != "writing":
        return chat
    answer = recorder().answer(last.id)
    if answer is None or (not answer.is_running and recorder().wait(last.id, END_S)):
        return chat_store().read(number)
    return chat


def is_missing() -> bool:
    """Whether the address names a chat that the history does not have."""
    name = st.query_params.get(PARAM, NEW)
    if name == NEW:
        return False
    try:
        chat_store().info(chosen_number())
    except ChatStoreError:
        return True
    return False


def open_chat(has_arrived: bool) -> Chat:
    """The chat to draw. On arrival from another page the address gets its name.

    Later that is left to the person's own steps, or the browser's way back would end here.
    """
    if character := st.query_params.get(CHARACTER):
        begin_new(character)
    chat = current_chat()
    if not is_missing():
        if st.session_state.get(CHAT_KEY) != chat.info.id:
            # By the address, such as the browser's way back.
            forget_view()
        st.session_state[CHAT_KEY] = chat.info.id
    if has_arrived and chat.info.id != NEW_ID:
        name_in_address(chat.info.id)
    st.session_state[SEEN_KEY] = (chat.info.id, chat.messages[-1].id if chat.messages else None)
    return chat


def name_in_address(number: int) -> None:
    name = str(number) if number != NEW_ID else NEW
    if st.query_params.get(PARAM) != name:
        st.query_params[PARAM] = name
    if CHARACTER in st.query_params:
        del st.query_params[CHARACTER]


def show_chat(number: int) -> None:
    """Make the chat `number` this tab's."""
    st.session_state[CHAT_KEY] = number
    forget_view()
    name_in_address(number)


def forget_view() -> None:
    """Show the next chat from its end, without the last one's editor, hits and errors."""
    for key in (EDIT_KEY, FOUND_KEY, MORE_KEY, ERROR_KEY, LEFT_KEY, FAILED_KEY):
        st.session_state.pop(key, None)


def last_seen(number: int) -> int | None:
    """The id of a chat's last message when this tab drew it: its person has read no later one."""
    seen, last = st.session_state.get(SEEN_KEY, (NEW_ID, None))
    return last if seen == number else None


def is_busy(chat: Chat) -> bool:
    """Whether something is being written in a chat, by this process or by another one that has the history open."""
    return chat_service().is_busy(chat.info.id) or (bool(chat.messages) and chat.messages[-1].state == "writing")


# A new chat ---------------------------------------------------------------------------------------------------------


def begin_new(character: str = "", mode: Mode | None = None) -> None:
    """An empty chat with a character, with nothing else chosen. Mode None is a sensible one."""
    forget_new()
    st.session_state.pop(KEPT_KEY, None)
    new_values().update(character=character, mode=mode)
    show_chat(NEW_ID)


def begin_chat() -> None:
    """A new chat, also where the loaded model was not taught to chat: a notebook has a button of its own."""
    begin_new(mode="chat" if default_mode(has_character=False) == "notebook" else None)


def keep(chat: Chat) -> Chat:
    """`chat` from the history, into which a new one is written first."""
    if chat.info.id != NEW_ID:
        return chat
    info = chat.info
    number = chat_store().add(opened_chat(info, new_values()["greeting"]))
    _born()[number] = tag_of(info)
    is_shown = is_missing() or chosen_number() == NEW_ID
    forget_new()
    kept = chat_store().read(number)
    if is_shown:
        st.session_state[KEPT_KEY] = (number, time.monotonic())
        show_chat(number)
        st.session_state[SEEN_KEY] = (number, kept.messages[-1].id if kept.messages else None)
    return kept
