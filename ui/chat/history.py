"""All chats in the sidebar: a new one, search, import, the list by days and pages; and links for other pages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import streamlit as st
from streamlit import get_option

from core.chat.archives import chat_files_in
from core.chat.importing import MAX_FILE_BYTES, MIB, read_chats
from core.chat.records import ChatInfo, CopiedChat, Hit
from core.common.errors import DeckError
from ui.chat.day_groups import Group, grouped
from ui.chat.feedback import FAILED_KEY, LEFT_KEY, show_errors
from ui.chat.portraits import faces_style, tiny_face
from ui.chat.session import FOUND_KEY, PARAM, begin_chat, begin_new, show_chat
from ui.chat.setup import cast_names, title_of
from ui.chat.trash import trash_button
from ui.shared.browser import close_sidebar_on
from ui.shared.clock import reader_zone
from ui.shared.errors import sentence
from ui.shared.i18n import text, tr
from ui.shared.icon_buttons import icons
from ui.shared.markdown import escape, shortened
from ui.shared.resources import chat_service, chat_store, lorebooks
from ui.shared.routing import CHAT_PAGE

# What is too wide is cut by the browser.
TITLE_CHARS = 60
PAGE_CHATS, PAGE_HITS = 25, 25
SEARCH_KEY, COUNT_KEY, FILES_KEY = "chat_search", "chat_list_count", "chat_import_files"
IMPORT_COUNT_KEY = "chat_import_count"
FILE_TYPES = ["json", "jsonl", "zip"]
SNIPPET_CHARS = 70
# In a narrow window the sidebar lies over the chat that a click on one of these shows.
CHOICES = ("chat_new", "chat_notebook", "chat_open", "chat_hit", "chat_answering")
# Rows instead of buttons: a picture or an icon, the title, and the names below it.
LIST_STYLE = """<style>
[class*="st-key-chat_open_"] button {
  justify-content: flex-start; gap: 0.5rem; padding: 0.2rem 0.5rem; min-height: 2.4rem; text-align: start;
}
[class*="st-key-chat_open_"] button > div, [class*="st-key-chat_open_"] button > div > span {
  justify-content: flex-start; min-width: 0;
}
[class*="st-key-chat_open_"] [data-testid="stIconMaterial"] { width: 1.75rem; }
[class*="st-key-chat_open_"] button p { line-height: 1.25; }
[class*="st-key-chat_open_"] button p > .stMarkdownColoredText:last-child {
  display: block; overflow: hidden; text-overflow: ellipsis; line-height: 1.2;
}
[class*="st-key-chat_group_"] { margin-bottom: 0.5rem; }
</style>"""


def chat_list(current: int) -> None:
    """The list for the chat page's sidebar; the chat that is shown stands out."""
    count = chat_store().count()
    st.html(LIST_STYLE)
    close_sidebar_on(CHOICES)
    with st.container(gap="xsmall"):
        with st.container(horizontal=True, gap="xsmall", wrap=False):
            st.button(tr("chat.new"), key="chat_new", type="primary", width="stretch",
                      on_click=begin_chat)  # fmt: skip
            st.button(tr("chat.notebook"), key="chat_notebook", width="stretch",
                      help=tr("mode.notebook_help"), on_click=begin_new, args=("", "notebook"))  # fmt: skip
        with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", wrap=False):
            st.text_input(tr("chat.search"), key=SEARCH_KEY, placeholder=tr("chat.search"), icon=":material/search:",
                          label_visibility="collapsed", persist_state="session")  # fmt: skip
            with (
                icons("chat_import"),
                st.popover(tr("chat.import"), type="tertiary", icon=":material/upload:", help=tr("chat.import")),
            ):
                _draw_import()
        if wanted := st.session_state[SEARCH_KEY].strip():
            _draw_hits(chat_store().search(wanted, PAGE_HITS))
        elif count:
            _draw_chats(current, count)
        else:
            st.caption(tr("chat.list_empty"))
        trash_button()


def _draw_chats(current: int, count: int) -> None:
    num_shown = int(st.session_state.get(COUNT_KEY, PAGE_CHATS))
    chats = chat_store().chats(num_shown)
    faces = {name: face for name in {info.character for info in chats} if (face := tiny_face(name))}
    st.html(faces_style(faces, {info.id: info.character for info in chats}))
    for group, found in grouped(chats, time.time(), reader_zone()):
        st.caption(_group_name(group))
        with st.container(gap=None, key=f"chat_group_{group.kind}_{group.month or ''}"):
            for info in found:
                _draw_chat(info, info.id == current, info.character in faces)
    if count > num_shown:
        st.button(tr("chat.list_more", count=f"{count - num_shown:,}"), key="chat_list_more", type="tertiary",
                  icon=":material/expand_more:", on_click=_show_more, args=(num_shown,))  # fmt: skip


def _draw_chat(info: ChatInfo, is_current: bool, has_face: bool) -> None:
    """The title, and below it who speaks."""
    busy = chat_service().is_busy(info.id)
    st.button(_label(info), key=f"chat_open_{info.id}", icon=None if has_face and not busy else icon_of(info),
              type="secondary" if is_current else "tertiary", wrap=False, width="stretch",
              on_click=show_chat, args=(info.id,))  # fmt: skip


def _label(info: ChatInfo) -> str:
    label, names = escape(shortened(title_of(info), TITLE_CHARS)), cast_names(info)
    return f"{label} :gray[:small[{escape(shortened(names, TITLE_CHARS))}]]" if names and info.title else label


def _group_name(group: Group) -> str:
    if group.month is None:
        return tr(f"chat.group_{group.kind}")
    return tr("chat.group_month", month=tr(f"month.{group.month.month}"), year=str(group.month.year))


def icon_of(info: ChatInfo) -> str:
    if chat_service().is_busy(info.id):
        return "spinner"
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
                st.caption(snippet_of(hit))


def snippet_of(hit: Hit) -> str:
    """The words of a hit as Markdown, with what was found in the primary colour."""
    before, found, after = hit.snippet[: hit.begin], hit.snippet[hit.begin : hit.end], hit.snippet[hit.end :]
    # Behind a colon Streamlit takes the next one for a letter, unless that one is written as a letter itself.
    before = escape(before[:-1]) + r"\:" if before.endswith(":") else escape(before)
    gap = " " if after[:1].isspace() else ""
    return f"{before}:primary[{escape(found)}]{gap}{escape(shortened(after, SNIPPET_CHARS))}"


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
    zip_mib = get_option("server.maxUploadSize")
    st.caption(tr("chat.import_limit", limit=MAX_FILE_BYTES // MIB, zip=zip_mib))
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
                added += chat_store().add_all([_with_books(chat) for chat in found.chats])
                left += [(name, found.notices)] if found.notices else []
        except DeckError as error:
            failed.append((file.name, error))
    if added:
        st.session_state[IMPORT_COUNT_KEY] = st.session_state.get(IMPORT_COUNT_KEY, 0) + 1
        show_chat(added[-1])
        st.toast(tr("chat.imported", count=len(added)), icon=":material/check_circle:")
    st.session_state[LEFT_KEY] = left
    st.session_state[FAILED_KEY] = failed


def _with_books(chat: CopiedChat) -> CopiedChat:
    """A chat from a file, which names its lorebooks by their names."""
    return replace(chat, lorebooks=tuple(map(lorebooks().key_named, chat.lorebooks)))


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
        return chat_store().recent(limit)
    except DeckError:
        return []


def chat_links(chats: Sequence[ChatInfo]) -> None:
    """A link to each chat, for other pages."""
    for info in chats:
        st.page_link(CHAT_PAGE, label=_label(info), icon=icon_of(info), width="stretch",
                     query_params={PARAM: str(info.id)})  # fmt: skip
