"""What this tab's chat asks the model, now or once its answer is finished, and what it takes back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from core.chat.records import Chat
from core.chat.service import ImpersonationDraft
from core.chat.truncation import ContextError
from core.common.errors import DeckError
from core.documents.document import Document
from ui.chat.feedback import NOTICE_KEY, Notice, show_errors, tell
from ui.chat.files import add_files, bring_back, forget_files, next_files, read_waiting
from ui.chat.new_chat import NEW_ID
from ui.chat.reading_place import go_to_end
from ui.chat.session import (
    INPUT_KEY,
    begin_new,
    born_tag,
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
    """Ask what was typed, or keep it until the running answer ends. Where that fails, put it back into the input.

    Files that come without words are held for them, as the browser sends them.
    """
    sent = st.session_state[INPUT_KEY]
    text, uploads = (sent, []) if isinstance(sent, str) else (sent.text, sent.files) if sent else ("", [])
    taken: list[str] = []

    @show_errors
    def take() -> None:
        if uploads and not _add(tag, uploads, bool(text.strip())):
            return
        if text.strip():
            _ask(tag, text)
        taken.append(text)

    take()
    if not taken and text.strip():
        fill_input(text)


@show_errors
def ask(tag: str, text: str) -> None:
    """Ask `text` in a chat, or add it to the chat's draft while an answer is written there."""
    _ask(tag, text)


def _ask(tag: str, text: str) -> None:
    go_to_end()
    chat = chat_of(tag)
    after, born = last_seen(chat.info.id), born_tag(chat.info)
    files = _files_to_send(born, chat, text)
    state = engine().state
    # Another tab, or a program, may have woken it before this page has shown that.
    if state.asleep is not None or state.phase == "loading":
        engine().wake()
        chat = keep(chat)
        chat_store().add_draft(chat.info.id, text, files)
        forget_files(born)
        return
    if is_busy(chat):
        chat_store().add_draft(chat.info.id, text, files)
        forget_files(born)
        return
    noted = chat.info.draft
    if noted:
        text, files = f"{noted}\n\n{text}", (*chat_store().draft_files(chat.info.id), *files)
    context, start = prompt_context(chat, line=text), held(START, tag)
    with _files_named(files):
        if chat.info.id == NEW_ID:
            # What cannot be asked leaves no empty chat behind.
            context.prepare([*context.turns_of(chat.messages), context.asked(text, files)], start=start)
            chat = keep(chat)
            after = chat.messages[-1].id if chat.messages else None
        if context.speaker and order_of(chat.info) == "manual":
            chat_store().append_user(chat.info.id, text, after, files, context.character.person_name)
        else:
            chat_service().send(chat.info.id, text, after, context, start, files)
            let_go(START, tag)
    forget_files(born)
    if chosen_number() == chat.info.id:
        show_chat(chat.info.id)


def _add(tag: str, uploads: Sequence[UploadedFile], is_asked: bool) -> bool:
    """Whether the question may be asked now: one with a file that cannot be read waits, and the page says why."""
    born = born_tag(chat_of(tag).info)
    add_files(born, uploads)
    if is_asked:
        read_waiting(born)
    return not next_files(born).refused


def _files_to_send(born: str, chat: Chat, text: str) -> tuple[Document, ...]:
    """The files of the next question, cut where that was chosen."""
    read_waiting(born)
    added = next_files(born)
    if not added.is_cut:
        return tuple(added.files)
    context = prompt_context(chat, line=text)
    return context.files_that_fit(context.turns_of(chat.messages), text, added.files)


@contextmanager
def _files_named(files: Sequence[Document]) -> Iterator[None]:
    """Where a question is too long with its files, say what can be done with those."""
    try:
        yield
    except ContextError as error:
        if files and error.key == "message_too_long":
            raise ContextError("files_too_long", **error.params) from error
        raise


def ask_noted(chat: Chat) -> Chat:
    """Ask the chat's draft once the model is free for it: it was typed while the last answer was written, or while the
    model slept."""
    if not chat.info.draft or is_busy(chat) or engine().state.phase != "ready":
        return chat
    last = chat.messages[-1] if chat.messages else None
    try:
        context, files = prompt_context(chat, line=chat.info.draft), chat_store().draft_files(chat.info.id)
        if context.speaker and order_of(chat.info) == "manual":
            chat_store().append_user(
                chat.info.id, chat.info.draft, last.id if last else None, files, context.character.person_name
            )
        else:
            with _files_named(files):
                chat_service().send(chat.info.id, chat.info.draft, last.id if last else None, context, files=files)
    except DeckError as error:
        if error.key != "chat_moved_on":
            tell(error)
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
        bring_back(born_tag(info), chat_store().draft_files(number))
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
        tell(draft.answer.error)
    return None


@show_errors
def stop(number: int) -> None:
    chat_service().stop(number)


@show_errors
def delete_chat(number: int) -> None:
    chat_store().delete_chat(number)
    # Nothing begins there from now on. What another tab has begun till then ends too.
    chat_service().stop(number)
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
