"""A notebook: one text that a person writes and the model goes on with, with stop and undo."""

from __future__ import annotations

import streamlit as st

from core.chat.records import Chat, Message
from core.chat.stats import error_of
from ui.chat.actions import stop
from ui.chat.feedback import show_errors
from ui.chat.new_chat import NEW_ID
from ui.chat.session import chat_of, is_busy, keep, tag_of
from ui.chat.setup import prompt_context
from ui.chat.transcript import POLL_S
from ui.shared.errors import show_error
from ui.shared.fragment import redraw_every
from ui.shared.i18n import tr
from ui.shared.identity import key_of
from ui.shared.resources import chat_service, chat_store, engine, recorder

TEXT = "notebook_text"
HEIGHT_PX = 440


def draw_notebook(chat: Chat) -> None:
    """The text, to write in while the model rests and to read while it writes."""
    page, tag = chat.messages[-1] if chat.messages else None, tag_of(chat.info)
    key = ""
    if page is not None and page.state == "writing":
        redraw_every(POLL_S, _draw_growing, page)
    else:
        key = key_of(TEXT, tag, page.text if page else "")
        st.text_area(tr("mode.notebook"), key=key, height=HEIGHT_PX, label_visibility="collapsed",
                     placeholder=tr("chat.notebook_placeholder"), on_change=_keep_text, args=(tag, key))  # fmt: skip
    _draw_buttons(chat, page, tag, key)
    if page is not None and page.state == "failed" and (error := error_of(page.stats)):
        show_error(error)


def _draw_growing(page: Message) -> None:
    answer, written = recorder().answer(page.id), recorder().written(page.id)
    with st.container(height=HEIGHT_PX, border=True, autoscroll=True):
        st.text(page.text if written is None else written.text)
        if answer is not None and answer.is_paused:
            st.markdown(f":shimmer[{tr('chat.phase_paused')}]")
        elif answer is not None and not answer.text:
            st.markdown(f":shimmer[{tr(f'chat.phase_{answer.phase}')}]")
    if answer is None or not answer.is_running:
        st.rerun()


def _draw_buttons(chat: Chat, page: Message | None, tag: str, key: str) -> None:
    busy = chat.info.id != NEW_ID and is_busy(chat)
    place = page.versions.index(page.id) if page else 0
    count = len(page.versions) if page else 1
    with st.container(horizontal=True, vertical_alignment="center"):
        if busy:
            st.button(tr("chat.stop"), key=f"chat_stop_{tag}", icon=":material/stop_circle:", on_click=stop,
                      args=(chat.info.id,))  # fmt: skip
        else:
            st.button(tr("chat.write_on"), key=f"notebook_go_{tag}", icon=":material/play_arrow:", type="primary",
                      disabled=engine().state.phase != "ready", on_click=_write_on, args=(tag, key))  # fmt: skip
        st.button(tr("chat.undo"), key=f"notebook_undo_{tag}", icon=":material/undo:", disabled=busy or place == 0,
                  on_click=_step, args=(tag, -1))  # fmt: skip
        st.button(tr("chat.redo"), key=f"notebook_redo_{tag}", icon=":material/redo:",
                  disabled=busy or place == count - 1, on_click=_step, args=(tag, 1))  # fmt: skip


@show_errors
def _keep_text(tag: str, key: str) -> None:
    # While the model writes there is nothing to type in: this is the text that it was just given.
    if not is_busy(chat_of(tag)):
        _kept(tag, st.session_state[key])


def _kept(tag: str, text: str) -> Chat:
    """The chat, in which `text` is now a version of its own: what another tab wrote meanwhile is the one before it."""
    chat = keep(chat_of(tag))
    if chat.messages:
        chat_store().edit(chat.messages[-1].id, text)
    elif text:
        chat_store().append_text(chat.info.id, text)
    return chat


@show_errors
def _write_on(tag: str, key: str) -> None:
    context = prompt_context(chat_of(tag))
    kept = _kept(tag, st.session_state[key])
    chat_service().continue_notebook(kept.info.id, st.session_state[key], context)


@show_errors
def _step(tag: str, by: int) -> None:
    """Show the text as it was one change before or after this one."""
    page = chat_of(tag).messages[-1]
    place = page.versions.index(page.id) + by
    if 0 <= place < len(page.versions):
        chat_store().show(page.versions[place])
