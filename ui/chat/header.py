"""The head of the chat page: its title and faces, and the popovers that change the chat."""

from __future__ import annotations

import streamlit as st
from streamlit import get_option

from core.chat.database import ChatStoreError
from core.chat.prompt_context import Prompt
from core.chat.records import Chat, ChatInfo
from core.personas.fields import visible
from ui.chat.adapter_form import adapter_form, say_adapter_is_gone
from ui.chat.lore import draw_lore, missing_books
from ui.chat.model_menu import draw_model
from ui.chat.new_chat import NEW_ID
from ui.chat.portraits import Faces
from ui.chat.sampling_form import sampling_form
from ui.chat.session import begin_chat, info_of, tag_of
from ui.chat.setup import find_character, title_of
from ui.chat.thinking_form import thinking_form
from ui.chat.who import draw_who, say_unknown_format
from ui.chat.whole_chat import draw_whole
from ui.shared.fragment import redraw_alone
from ui.shared.i18n import tr
from ui.shared.icon_buttons import icons
from ui.shared.markdown import escape
from ui.shared.shortcuts import NEW_CHAT

FACE_PX, MAX_FACES = 36, 4
# The head stays below the window's top bar while the messages go by. Its title is one line, however long it is. On a
# phone the model's name has the room: of who speaks and of how text is generated the icons are seen, their names read.
HEAD_STYLE = """<style>
[data-testid="stLayoutWrapper"]:has(> .st-key-chat_head) {
  position: sticky; top: 3.75rem; z-index: 90; padding-bottom: 0.5rem;
  background: BACK; border-bottom: 1px solid BORDER;
}
[data-testid="stMainBlockContainer"]:has(.st-key-chat_head) { padding-top: 3.75rem; }
/* In a wide window Streamlit lets the top bar be seen through. */
.stApp:has(.st-key-chat_head) [data-testid="stHeader"] { background: BACK; }
.st-key-chat_head h2 {
  padding: 0; font-size: 1.25rem; overflow: hidden; white-space: nowrap; text-overflow: ellipsis;
}
.st-key-chat_head [data-testid="stElementToolbar"] { display: none; }
.st-key-chat_title_row { flex-wrap: nowrap; }
.st-key-chat_title_row > :has(img) + :has(img) { margin-inline-start: -1.5rem; }
.st-key-chat_title_row > :has(h2) { flex: 1 1 0; min-width: 0; }
.st-key-chat_tools { flex-wrap: nowrap; }
.st-key-chat_tools > * { flex: 0 1 auto; min-width: 0; }
@media (max-width: 40rem) {
  .st-key-chat_tools > :not(:first-child) { flex-shrink: 0; }
  .st-key-chat_tools > :not(:first-child) [data-testid="stMarkdownContainer"] {
    position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  }
}
</style>"""


def draw_head(chat: Chat, faces: Faces, prompt: Prompt | None) -> None:
    """`prompt` is what the model reads of the chat now."""
    info, tag = chat.info, tag_of(chat.info)
    st.html(HEAD_STYLE.replace("BACK", _theme("backgroundColor")).replace("BORDER", _theme("borderColor")))
    with st.container(key="chat_head", gap="xsmall"):
        _draw_title(chat, faces, tag, prompt)
        _draw_tools(chat, tag, prompt.fitted.prompt_tokens if prompt else 0)
    say_unknown_format(info)
    say_adapter_is_gone(info)
    for name in missing_books(info):
        st.warning(tr("lorebooks.gone", name=visible(name)), icon=":material/menu_book:")
    for name in info.cast:
        if find_character(name) is None:
            kind = "member" if len(info.cast) > 1 else "character"
            st.warning(tr(f"chat.{kind}_gone", name=name), icon=":material/person_off:")


def _theme(color: str) -> str:
    """A colour of the theme, as CSS that follows a change from light to dark by itself."""
    return f"light-dark({get_option(f'theme.light.{color}')}, {get_option(f'theme.dark.{color}')})"


def _draw_title(chat: Chat, faces: Faces, tag: str, prompt: Prompt | None) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="chat_title_row"):
        cast = [faces.speakers.get(name) for name in chat.info.cast] if len(chat.info.cast) > 1 else [faces.char]
        for face in cast[:MAX_FACES]:
            if face:
                st.image(face, width=FACE_PX)
        st.header(escape(title_of(chat.info)), anchor=False)
        with icons("chat_head"):
            st.button(tr("chat.new"), key="chat_begin", icon=":material/edit_square:", type="tertiary",
                      shortcut=NEW_CHAT, help=f"{tr('chat.new')} {NEW_CHAT}", on_click=begin_chat)  # fmt: skip
            if chat.info.mode != "notebook":
                with st.popover(tr("lorebooks.title"), key=f"chat_lore_{tag}", type="tertiary",
                                icon=":material/menu_book:", help=tr("lorebooks.title")):  # fmt: skip
                    draw_lore(chat.info, tag, prompt)
            if chat.info.id != NEW_ID:
                with st.popover(tr("chat.this_chat"), key=f"chat_whole_{tag}", type="tertiary",
                                icon=":material/more_horiz:", help=tr("chat.this_chat")):  # fmt: skip
                    draw_whole(chat)


def _draw_tools(chat: Chat, tag: str, used_tokens: int) -> None:
    with st.container(horizontal=True, gap="xsmall", key="chat_tools"):
        draw_model(used_tokens)
        if chat.info.mode != "notebook":
            with st.popover(_who(chat.info), key=f"chat_who_{tag}", icon=":material/theater_comedy:"):
                draw_who(chat.info, tag)
        with st.popover(tr("chat.settings"), key=f"chat_settings_{tag}", icon=":material/tune:"):
            redraw_alone(_draw_sampling, tag)


def _draw_sampling(tag: str) -> None:
    """The chat as it is now: this part of the page may be drawn again alone, and the chat be gone by then."""
    try:
        adapter_form(tag, info_of(tag))
        thinking_form(tag, info_of(tag))
        sampling_form(tag)
    except ChatStoreError:
        st.rerun()


def _who(info: ChatInfo) -> str:
    if len(info.cast) > 1:
        return tr("chat.group", count=len(info.cast))
    found = find_character(info.character)
    return escape(found[1].name) if found else tr(f"mode.{info.mode}")
