"""What this tab's chat asks the model, now or once its answer is finished, and what it takes back."""

from __future__ import annotations

import streamlit as st

from core.chat.records import Chat
from core.chat.service import ImpersonationDraft
from core.common.errors import DeckError
from ui.chat.feedback import ERROR_KEY, NOTICE_KEY, Notice, show_errors
from ui.chat.new_chat import NEW_ID
from ui.chat.reading_place import go_to_end
from ui.chat.session import (
    INPUT_KEY,
    begin_new,
    chat_of,
    chosen_number,
    fill_input,
    is_busy,
    keep,
    last_seen,
    read_chat,
    show_chat,
)
from ui.chat.setup import greetings_of, order_of, prompt_context
from ui.shared.identity import held, let_go
from ui.shared.resources import chat_service, chat_store, engine

# The words that the next answer shall begin with, typed beside the input.
START = "chat_start"


def submit(tag: str) -> None:
    """Ask what was typed, or keep it until the running answer ends. Where that fails, put it back into the input."""
    text = st.session_state[INPUT_KEY] or ""
    if not text.strip():
        return
    taken: list[str] = []

    @show_errors
    def take() -> None:
        _ask(tag, text)
        taken.append(text)

    take()
    if not taken:
        fill_input(text)


@show_errors
def ask(tag: str, text: str) -> None:
    """Ask `text` in a chat, or add it to the chat's draft while an answer is written there."""
    _ask(tag, text)


def _ask(tag: str, text: str) -> None:
    go_to_end()
    chat = chat_of(tag)
    after = last_seen(chat.info.id)
    if is_busy(chat):
        chat_store().add_draft(chat.info.id, text)
        return
    noted = chat.info.draft
    text = f"{noted}\n\n{text}" if noted else text
    context, start = prompt_context(chat, line=text), held(START, tag)
    if chat.info.id == NEW_ID:
        # What cannot be asked leaves no empty chat behind.
        context.prepare([*context.turns_of(chat.messages), context.asked(text)], start=start)
        chat = keep(chat)
        after = chat.messages[-1].id if chat.messages else None
    if context.speaker and order_of(chat.info) == "manual":
        chat_store().append_user(chat.info.id, text, after, speaker=context.character.person_name)
    else:
        chat_service().send(chat.info.id, text, after, context, start)
        let_go(START, tag)
    if chosen_number() == chat.info.id:
        show_chat(chat.info.id)


def ask_noted(chat: Chat) -> Chat:
    """Ask the chat's draft, which was typed while the last answer was written, once that is finished."""
    if not chat.info.draft or is_busy(chat) or engine().state.phase != "ready":
        return chat
    last = chat.messages[-1] if chat.messages else None
    try:
        context = prompt_context(chat, line=chat.info.draft)
        if context.speaker and order_of(chat.info) == "manual":
            chat_store().append_user(chat.info.id, chat.info.draft, last.id if last else None,
                                     speaker=context.character.person_name)  # fmt: skip
        else:
            chat_service().send(chat.info.id, chat.info.draft, last.id if last else None, context)
    except DeckError as error:
        if error.key != "chat_moved_on":
            st.session_state[ERROR_KEY] = error
            _take_noted(chat.info.id)
    return read_chat(chat.info.id)


@show_errors
def take_noted(number: int) -> None:
    _take_noted(number)


def _take_noted(number: int) -> None:
    """Bring the chat's draft back into its input. Another tab may have taken it before."""
    info = chat_store().info(number)
    if info.draft:
        fill_input(info.draft)
        chat_store().drop_draft(number, info.draft)


@show_errors
def speak(tag: str, speaker: str) -> None:
    """Let this character of a group speak next, whatever the order is."""
    chat = chat_of(tag)
    context = prompt_context(chat, speaker)
    after = last_seen(chat.info.id)
    if chat.info.id == NEW_ID:
        context.prepare(context.turns_of(chat.messages))
        chat = keep(chat)
        after = chat.messages[-1].id if chat.messages else None
    chat_service().reply(chat.info.id, after, context)
    go_to_end()


@show_errors
def greet(tag: str, speaker: str) -> None:
    """Let a character that came into a group later say what it greets with."""
    chat = chat_of(tag)
    greetings = greetings_of(chat, speaker)
    if greetings:
        chat_store().greet(chat.info.id, last_seen(chat.info.id), greetings, speaker)


@show_errors
def impersonate(tag: str) -> None:
    chat = chat_of(tag)
    context = prompt_context(chat)
    chat_service().impersonate(keep(chat).info.id, context)
    go_to_end()


def take_impersonation(number: int) -> ImpersonationDraft | None:
    """The message that the model writes for the person. A finished one goes into the input."""
    draft = chat_service().impersonation(number)
    if (text := chat_service().take_impersonation(number)) is None:
        return draft
    if text.strip():
        fill_input(text.strip())
    if draft is not None and draft.answer.error is not None:
        st.session_state[ERROR_KEY] = draft.answer.error
    return None


@show_errors
def stop(number: int) -> None:
    chat_service().stop(number)


@show_errors
def delete_chat(number: int) -> None:
    chat_service().stop(number)
    chat_store().delete_chat(number)
    if chosen_number() == number:
        begin_new()
    st.session_state[NOTICE_KEY] = Notice("chat", number, number)


@show_errors
def undo(notice: Notice) -> None:
    if notice.kind == "chat":
        chat_store().restore_chat(notice.number)
        show_chat(notice.number)
    else:
        chat_store().restore(notice.number)
