"""The trash: the chats that were deleted within the last weeks, to restore or to delete for good."""

from __future__ import annotations

import math
import time

import streamlit as st

from core.chat.records import DeletedChat
from core.chat.store import KEEP_DELETED_DAYS
from ui.chat.feedback import show_errors
from ui.chat.session import show_chat
from ui.chat.setup import cast_names, title_of
from ui.shared.i18n import text, tr
from ui.shared.markdown import escape, shortened
from ui.shared.resources import chat_store

DAY_S = 24 * 3600.0
PAGE_CHATS, TITLE_CHARS = 25, 60
COUNT_KEY, OPEN_KEY, LEAVE_KEY = "chat_trash_count", "chat_trash_open", "chat_trash_leave"


def trash_button() -> None:
    """The way to the trash, where there is anything in it."""
    if count := chat_store().count_deleted():
        st.button(tr("chat.trash", count=f"{count:,}"), key="chat_trash", icon=":material/delete:", type="tertiary",
                  on_click=_open)  # fmt: skip
    if st.session_state.pop(OPEN_KEY, False):
        st.dialog(text("chat.trash_title"), icon=":material/delete:")(_draw_trash)()


def _open() -> None:
    st.session_state.pop(COUNT_KEY, None)
    st.session_state[OPEN_KEY] = True


def _draw_trash() -> None:
    if st.session_state.pop(LEAVE_KEY, False):
        st.rerun()
    num_shown = int(st.session_state.get(COUNT_KEY, PAGE_CHATS))
    count, chats = chat_store().count_deleted(), chat_store().deleted(num_shown)
    st.markdown(tr("chat.trash_text", days=KEEP_DELETED_DAYS))
    if not chats:
        st.caption(tr("chat.trash_empty"))
        return
    with st.container(gap="small"):
        for chat in chats:
            _draw_chat(chat)
    if count > num_shown:
        st.button(tr("chat.list_more", count=f"{count - num_shown:,}"), key="chat_trash_more", type="tertiary",
                  icon=":material/expand_more:", on_click=_show_more, args=(num_shown,))  # fmt: skip
    with st.popover(tr("chat.trash_all"), icon=":material/delete_forever:", key="chat_trash_all"):
        st.markdown(tr("chat.trash_all_text"))
        st.button(tr("chat.trash_all_yes"), key="chat_trash_all_yes", on_click=_empty,
                  args=(chats[0].deleted_s,))  # fmt: skip


def _draw_chat(chat: DeletedChat) -> None:
    info = chat.info
    left_s = chat.deleted_s + KEEP_DELETED_DAYS * DAY_S - time.time()
    days = max(1, math.ceil(left_s / DAY_S))
    names = [cast_names(info)] if info.title and info.cast else []
    words = [*map(escape, names), tr("chat.trash_day" if days == 1 else "chat.trash_days", count=days)]
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        with st.container(gap=None, width="stretch"):
            st.markdown(escape(shortened(title_of(info), TITLE_CHARS)))
            st.caption(" · ".join(word for word in words if word))
        st.button(tr("chat.restore"), key=f"chat_restore_{info.id}", icon=":material/restore_from_trash:",
                  on_click=_restore, args=(info.id,))  # fmt: skip
        with st.popover(tr("chat.purge"), key=f"chat_purge_ask_{info.id}", type="tertiary"):
            st.markdown(tr("chat.purge_text"))
            st.button(tr("chat.purge_yes"), key=f"chat_purge_{info.id}", icon=":material/delete_forever:",
                      on_click=_purge, args=(info.id,))  # fmt: skip


def _show_more(num_shown: int) -> None:
    st.session_state[COUNT_KEY] = num_shown + PAGE_CHATS


@show_errors
def _restore(number: int) -> None:
    # Whatever comes of it, the page says it.
    st.session_state[LEAVE_KEY] = True
    chat_store().restore_chat(number)
    show_chat(number)


@show_errors
def _purge(number: int) -> None:
    chat_store().purge_chat(number)


@show_errors
def _empty(until_s: float) -> None:
    st.session_state[LEAVE_KEY] = True
    chat_store().empty_trash(until_s)
