"""Which chat this tab shows, a new one or one of the history; draws and asks nothing.

The address names the chat (?chat=3, ?chat=new, ?chat=new&character=Ada), so that a reloaded or reopened tab finds it
again. A new chat is this tab's alone until something is said in it: empty chats are not kept.

What a button or a field does is for the chat that it was drawn for, whichever the tab shows by then: it is given the
chat's tag, as its key is.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from functools import wraps
from hashlib import sha256
from typing import Any, NamedTuple

import streamlit as st

from core.chat.database import ChatStoreError
from core.chat.records import Chat, ChatInfo, Message, Mode
from core.common.errors import DeckError
from core.common.panics import panics_as_errors, why_of
from ui.chat.setup import character_prompt, default_mode
from ui.shared.people import person
from ui.shared.resources import chat_service, chat_store, recorder

log = logging.getLogger(__name__)
PARAM, NEW, CHARACTER = "chat", "new", "character"
# This tab's chat: its id, or NEW_ID for one that is not in the history yet.
CHAT_KEY, NEW_ID = "chat_number", 0
NEW_KEY, SEEN_KEY, NOTICE_KEY, ERROR_KEY = "chat_new_values", "chat_seen", "chat_notice", "chat_error"
INPUT_KEY, FILLED_KEY = "chat_input", "chat_filled"
# The tags of this tab's new chats by the number that they have in the history.
BORN_KEY = "chat_born"
# Of the chat that is shown: the message being edited, copied or found, and how many more than the last few are drawn.
EDIT_KEY, COPY_KEY, FOUND_KEY, MORE_KEY = "chat_editing", "chat_copying", "chat_found", "chat_shown"
MAX_NUMBER_DIGITS = 15
# A browser that sends two steps at once, such as a text and a click, names in the second one the address from before
# the first: a chat that is new there is the one that was kept a moment ago.
KEPT_KEY, STALE_S = "chat_kept", 2.0
END_S = 2.0


class Notice(NamedTuple):
    """What was just done and can be taken back: a `kind` ("chat", "message"), of which id, in which chat."""

    kind: str
    number: int
    chat: int


def show_errors(step: Callable[..., None]) -> Callable[..., None]:
    """For what a button does: an error becomes what the page says next."""

    @wraps(step)
    def run(*args: Any, **values: Any) -> None:
        st.session_state.pop(ERROR_KEY, None)
        st.session_state.pop(NOTICE_KEY, None)
        try:
            with panics_as_errors():
                step(*args, **values)
        except DeckError as error:
            st.session_state[ERROR_KEY] = error
        except Exception as error:  # A click's edge: the page goes on, and what was typed is not lost with it.
            log.exception("%s failed", step)
            st.session_state[ERROR_KEY] = DeckError("page_fault", why=f"{type(error).__name__}: {why_of(error)}")

    return run


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
    """What the keys of widgets call a chat: its number; each new one has a name of its own."""
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
    """What the chat was called while it was this tab's new one."""
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
    """This tab's chat, a new one where the history does not have it. Raises ChatStoreError for a history unread."""
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
    """A chat as it is now. An answer that has just ended is waited for until it is written down."""
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
    """Another chat is seen from its end, without what was said about the one before."""
    for key in (EDIT_KEY, COPY_KEY, FOUND_KEY, MORE_KEY, ERROR_KEY):
        st.session_state.pop(key, None)


def last_seen(number: int) -> int | None:
    """The last message of a chat when this tab drew it: what was said after it, nobody here has read."""
    seen, last = st.session_state.get(SEEN_KEY, (NEW_ID, None))
    return last if seen == number else None


def is_busy(chat: Chat) -> bool:
    """Whether something is being written in a chat, by this process or by another one that has the history open."""
    return chat_service().is_busy(chat.info.id) or (bool(chat.messages) and chat.messages[-1].state == "writing")


# A new chat ---------------------------------------------------------------------------------------------------------


def new_values() -> dict[str, Any]:
    """What was chosen for the new chat: "character", "mode" (None: a sensible one), "settings", "greeting"."""
    if NEW_KEY not in st.session_state:
        settings = {"seed": secrets.token_hex(4)}
        st.session_state[NEW_KEY] = {"character": "", "mode": None, "settings": settings, "greeting": 0}
    values: dict[str, Any] = st.session_state[NEW_KEY]
    return values


def begin_new(character: str = "") -> None:
    """An empty chat with a character, with nothing else chosen."""
    st.session_state.pop(NEW_KEY, None)
    st.session_state.pop(KEPT_KEY, None)
    new_values()["character"] = character
    show_chat(NEW_ID)


def new_tag() -> str:
    return f"{NEW}_{new_values()['settings']['seed']}"


def new_chat_info() -> ChatInfo:
    values = new_values()
    mode: Mode = values["mode"] or default_mode(bool(values["character"]))
    return ChatInfo(NEW_ID, "", False, 0.0, 0.0, False, mode, values["character"], values["settings"], "")


def new_chat() -> Chat:
    values, info = new_values(), new_chat_info()
    greetings = character_prompt(info).greetings() if info.mode != "notebook" else ()
    if not greetings:
        return Chat(info, ())
    # Their ids are below 0: the greetings to flip through, of which one will be the first message.
    ids = tuple(-place - 1 for place in range(len(greetings)))
    chosen = min(values["greeting"], len(greetings) - 1)
    return Chat(info, (Message(ids[chosen], "assistant", greetings[chosen], 0.0, "done", {}, ids),))


def keep(chat: Chat) -> Chat:
    """`chat` in the history, where a new one is written now."""
    if chat.info.id != NEW_ID:
        return chat
    info = chat.info
    greetings = character_prompt(info).greetings() if chat.messages else ()
    number = chat_store().create(info.mode, info.character, info.settings, greetings)
    if chat.messages and (place := new_values()["greeting"]):
        chat_store().show(chat_store().read(number).messages[0].versions[min(place, len(greetings) - 1)])
    _born()[number] = tag_of(info)
    is_shown = is_missing() or chosen_number() == NEW_ID
    st.session_state.pop(NEW_KEY, None)
    kept = chat_store().read(number)
    if is_shown:
        st.session_state[KEPT_KEY] = (number, time.monotonic())
        show_chat(number)
        st.session_state[SEEN_KEY] = (number, kept.messages[-1].id if kept.messages else None)
    return kept


def change_settings(tag: str, **values: object) -> None:
    """Set some of a chat's settings; None takes one away, and what is given of "sampling" joins what is there."""

    def change(settings: dict[str, Any]) -> dict[str, Any]:
        changed = dict(settings)
        for name, value in values.items():
            old = changed.pop(name, None)
            if value is not None:
                changed[name] = {**(old or {}), **value} if isinstance(value, dict) else value
        return changed

    _change_settings(tag, change)


def change_system(tag: str, text: str, expected: str) -> None:
    """Give a chat instructions. `expected` are those that were seen: raises ChatStoreError where others hold by now."""

    def change(settings: dict[str, Any]) -> dict[str, Any]:
        if settings.get("system", "") not in (expected, text):
            raise ChatStoreError("chat_changed", text=text)
        others = {name: value for name, value in settings.items() if name != "system"}
        return others | ({"system": text} if text else {})

    _change_settings(tag, change)


def _change_settings(tag: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    number = number_of(tag)
    if number == NEW_ID:
        new_values()["settings"] = change(new_values()["settings"])
    else:
        chat_store().change_settings(number, change)
