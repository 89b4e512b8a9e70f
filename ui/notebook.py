"""A notebook: one text that a person writes and the model goes on with, with stop and undo."""

from __future__ import annotations

import streamlit as st

from core.chat.records import Chat, Message
from core.chat.stats import error_of
from ui.chat import NEW_ID, current_chat, is_busy, keep, told
from ui.chat_asking import stop
from ui.chat_messages import POLL_S
from ui.chat_setup import setup_of
from ui.errors import show_error
from ui.fragment import redraw_every
from ui.i18n import tr
from ui.resources import asker, chat_store, recorder, runner

TEXT_KEY = "notebook_text"
HEIGHT_PX = 440


def draw_notebook(chat: Chat) -> None:
    """The text, to write in while the model rests and to read while it writes."""
    page = chat.messages[-1] if chat.messages else None
    if page is not None and page.state == "writing":
        redraw_every(POLL_S, _draw_growing, page)
    else:
        st.session_state[TEXT_KEY] = page.text if page else ""
        st.text_area(tr("mode.notebook"), key=TEXT_KEY, height=HEIGHT_PX, label_visibility="collapsed",
                     placeholder=tr("chat.notebook_placeholder"), on_change=_keep_text)  # fmt: skip
    _draw_buttons(chat, page)
    if page is not None and page.state == "failed" and (error := error_of(page.stats)):
        show_error(error)


def _draw_growing(page: Message) -> None:
    answer, said = recorder().answer(page.id), recorder().text(page.id)
    with st.container(height=HEIGHT_PX, border=True, autoscroll=True):
        st.text(page.text if said is None else said)
        if answer is not None and not answer.text:
            st.markdown(f":shimmer[{tr(f'chat.phase_{answer.phase}')}]")
    if answer is None or not answer.is_running:
        st.rerun()


def _draw_buttons(chat: Chat, page: Message | None) -> None:
    busy = chat.info.id != NEW_ID and is_busy(chat)
    place = page.versions.index(page.id) if page else 0
    count = len(page.versions) if page else 1
    with st.container(horizontal=True, vertical_alignment="center"):
        if busy:
            st.button(tr("chat.stop"), key="chat_stop", icon=":material/stop_circle:", on_click=stop,
                      args=(chat.info.id,))  # fmt: skip
        else:
            st.button(tr("chat.write_on"), key="notebook_go", icon=":material/play_arrow:", type="primary",
                      disabled=runner().state.phase != "ready", on_click=_write_on)  # fmt: skip
        st.button(tr("chat.undo"), key="notebook_undo", icon=":material/undo:", disabled=busy or place == 0,
                  on_click=_step, args=(-1,))  # fmt: skip
        st.button(tr("chat.redo"), key="notebook_redo", icon=":material/redo:",
                  disabled=busy or place == count - 1, on_click=_step, args=(1,))  # fmt: skip


@told
def _keep_text() -> None:
    # While the model writes there is nothing to type in: this is the text that it was just given.
    if not is_busy(current_chat()):
        _kept(st.session_state[TEXT_KEY])


def _kept(text: str) -> Chat:
    """The chat, in which `text` is now a version of its own."""
    chat = keep(current_chat())
    if chat.messages:
        chat_store().edit(chat.messages[-1].id, text)
    elif text:
        chat_store().append_text(chat.info.id, text)
    return chat


@told
def _write_on() -> None:
    chat = current_chat()
    setup = setup_of(chat)
    kept = _kept(st.session_state[TEXT_KEY])
    asker().write_on(kept.info.id, st.session_state[TEXT_KEY], setup)


@told
def _step(by: int) -> None:
    """Show the text as it was one change before or after this one."""
    page = current_chat().messages[-1]
    place = page.versions.index(page.id) + by
    if 0 <= place < len(page.versions):
        chat_store().show(page.versions[place])
