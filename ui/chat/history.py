"""All chats in the sidebar: search, the list by pages, import; and links to chats for other pages."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from core.chat.archives import chat_files_in
from core.chat.importing import MAX_FILE_BYTES, MIB, read_chats
from core.chat.records import ChatInfo, Hit
from core.common.errors import DeckError
from ui.chat.feedback import FAILED_KEY, LEFT_KEY, show_errors
from ui.chat.session import FOUND_KEY, PARAM, show_chat
from ui.chat.setup import title_of
from ui.shared.errors import sentence
from ui.shared.i18n import text, tr
from ui.shared.markdown import escape, shortened
from ui.shared.resources import chat_service, chat_store
from ui.shared.routing import CHAT_PAGE

TITLE_CHARS = 26
PAGE_CHATS, PAGE_HITS = 25, 25
SEARCH_KEY, COUNT_KEY, FILES_KEY = "chat_search", "chat_list_count", "chat_import_files"
IMPORT_COUNT_KEY = "chat_import_count"
FILE_TYPES = ["json", "jsonl", "zip"]
SNIPPET_CHARS = 70


def chat_list(current: int) -> None:
    """The list for the chat page's sidebar; the chat that is shown stands out."""
    count = chat_store().count()
    with st.container(gap="xsmall"):
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.caption(tr("chat.list"), width="content")
            with st.popover(":material/upload:", type="tertiary", help=tr("chat.import")):
                _draw_import()
        if not count:
            st.caption(tr("chat.list_empty"))
            return
        st.text_input(tr("chat.search"), key=SEARCH_KEY, placeholder=tr("chat.search"), icon=":material/search:",
                      label_visibility="collapsed", persist_state="session")  # fmt: skip
        if wanted := st.session_state[SEARCH_KEY].strip():
            _draw_hits(chat_store().search(wanted, PAGE_HITS))
        else:
            _draw_chats(current, count)


def _draw_chats(current: int, count: int) -> None:
    num_shown = int(st.session_state.get(COUNT_KEY, PAGE_CHATS))
    with st.container(gap="xxsmall"):
        for info in chat_store().chats(num_shown):
            st.button(escape(shortened(title_of(info), TITLE_CHARS)), key=f"chat_open_{info.id}", icon=icon_of(info),
                      type="secondary" if info.id == current else "tertiary", wrap=False,
                      on_click=show_chat, args=(info.id,))  # fmt: skip
    if count > num_shown:
        st.button(tr("chat.list_more", count=count - num_shown), key="chat_list_more", type="tertiary",
                  icon=":material/expand_more:", on_click=_show_more, args=(num_shown,))  # fmt: skip


def icon_of(info: ChatInfo) -> str:
    if chat_service().is_busy(info.id):
        return "spinner"
    if info.is_pinned:
        return ":material/keep:"
    return ":material/edit_note:" if info.mode == "notebook" else ":material/chat_bubble:"


def _show_more(num_shown: int) -> None:
    st.session_state[COUNT_KEY] = num_shown + PAGE_CHATS


def _draw_hits(hits: Sequence[Hit]) -> None:
    if not hits:
        st.caption(tr("chat.search_none"))
    for hit in hits:
        with st.container(gap="xxsmall"):
            st.button(escape(shortened(hit.title or text("chat.new_title"), TITLE_CHARS)),
                      key=f"chat_hit_{hit.chat}_{hit.message or 0}",
                      icon=":material/chat_bubble:" if hit.message else ":material/title:", type="tertiary",
                      wrap=False, on_click=_open_hit, args=(hit,))  # fmt: skip
            if hit.message is not None:
                st.caption(_snippet(hit))


def _snippet(hit: Hit) -> str:
    before, found, after = hit.snippet[: hit.begin], hit.snippet[hit.begin : hit.end], hit.snippet[hit.end :]
    return f"{escape(before)}:primary[{escape(found)}]{escape(shortened(after, SNIPPET_CHARS))}"


@show_errors
def _open_hit(hit: Hit) -> None:
    if hit.message is not None:
        chat_store().show(hit.message)
    show_chat(hit.chat)
    st.session_state[FOUND_KEY] = hit.message


def _draw_import() -> None:
    st.markdown(tr("chat.import_text"))
    # A new key after each import empties the field.
    key = f"{FILES_KEY}_{st.session_state.get(IMPORT_COUNT_KEY, 0)}"
    st.file_uploader(tr("chat.import"), FILE_TYPES, accept_multiple_files=True, key=key,
                     label_visibility="collapsed", on_change=_import, args=(key,))  # fmt: skip
    st.caption(tr("chat.import_limit", limit=MAX_FILE_BYTES // MIB, zip=st.get_option("server.maxUploadSize")))
    _draw_failed()


@show_errors
def _import(key: str) -> None:
    """Each file for itself: one that is no chat keeps no other one out."""
    failed: list[tuple[str, DeckError]] = []
    left: list[tuple[str, tuple[DeckError, ...]]] = []
    added: list[int] = []
    for file in st.session_state[key]:
        try:
            for name, data in chat_files_in(file.name, file.getvalue()):
                found = read_chats(data)
                added += chat_store().add_all(found.chats)
                left += [(name, found.notices)] if found.notices else []
        except DeckError as error:
            failed.append((file.name, error))
    if added:
        st.session_state[IMPORT_COUNT_KEY] = st.session_state.get(IMPORT_COUNT_KEY, 0) + 1
        show_chat(added[-1])
        st.toast(tr("chat.imported", count=len(added)), icon=":material/check_circle:")
    st.session_state[LEFT_KEY] = left
    st.session_state[FAILED_KEY] = failed


def _draw_failed() -> None:
    for name, error in st.session_state.get(FAILED_KEY, []):
        st.error(f"**{escape(name)}**\n\n{sentence(error)}", icon=":material/error:")


def draw_left_behind() -> None:
    """What of the files that were just imported has no place here."""
    for name, notices in st.session_state.get(LEFT_KEY, []):
        lines = [f"**{escape(name)}**", *(f"- {sentence(notice)}" for notice in notices)]
        st.info("\n".join([lines[0], "", *lines[1:]]), icon=":material/move_to_inbox:")


def recent_chats(limit: int) -> list[ChatInfo]:
    """The newest chats; none where the history cannot be read, which the chat page says."""
    try:
        return chat_store().chats(limit)
    except DeckError:
        return []


def chat_links(chats: Sequence[ChatInfo]) -> None:
    """A link to each chat, for other pages."""
    for info in chats:
        st.page_link(CHAT_PAGE, label=escape(shortened(title_of(info), 60)), icon=icon_of(info), width="stretch",
                     query_params={PARAM: str(info.id)})  # fmt: skip
