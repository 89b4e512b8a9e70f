"""Draws a chat's messages, the growing answer among them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import streamlit as st

from core.chat.recorder import Written
from core.chat.records import Chat, Message
from core.chat.service import ImpersonationDraft
from core.chat.stats import error_of, stats_of
from core.engine.answer import Answer
from ui.chat.actions import take_noted
from ui.chat.files import draw_files
from ui.chat.message_actions import draw_actions, draw_editor, is_edited
from ui.chat.message_text import STYLE, draw_answer_text, draw_question
from ui.chat.portraits import Faces
from ui.chat.session import FOUND_KEY, MORE_KEY, is_busy
from ui.chat.thought import draw_thought, has_words
from ui.shared.browser import scroll_here
from ui.shared.errors import show_error
from ui.shared.fragment import redraw_every
from ui.shared.i18n import tr
from ui.shared.icon_buttons import icons
from ui.shared.markdown import escape, shortened
from ui.shared.resources import chat_store, preferences, recorder

POLL_S, FOREIGN_POLL_S = 0.1, 1.0
# A long chat opens with its end: so many messages are drawn at once, and as many more with each step back.
PAGE_MESSAGES = 20
NAME_CHARS = 60
# What the model does not read.
HIDDEN_STYLE = """<style>
[class*="st-key-hidden_message_"] [data-testid="stChatMessageContent"] { opacity: 0.6; }
</style>"""


def draw_transcript(chat: Chat, faces: Faces, begins_at: int) -> None:
    """The messages with what can be done with them. `begins_at` is the first one that the model still reads."""
    st.html(STYLE)
    first = max(0, len(chat.messages) - _num_shown(chat))
    if first:
        st.button(tr("chat.earlier", count=first), key=f"chat_earlier_{chat.info.id}", type="tertiary", width="stretch",
                  icon=":material/expand_less:", on_click=_show_more, args=(len(chat.messages) - first,))  # fmt: skip
    busy = is_busy(chat)
    for place, message in enumerate(chat.messages[first:], first):
        if place == begins_at > 0:
            _draw_memory()
        is_last = place == len(chat.messages) - 1
        if message.state == "writing":
            poll_s = FOREIGN_POLL_S if recorder().answer(message.id) is None else POLL_S
            redraw_every(poll_s, _draw_growing, chat, message, faces)
        else:
            _draw_message(chat, message, faces, is_last and not busy)
    if begins_at == len(chat.messages) > 0:
        _draw_memory()
    if chat.info.draft and busy:
        _draw_noted(chat, faces)


def _draw_memory() -> None:
    """The line at which the model's memory begins."""
    with st.container(horizontal_alignment="center"):
        st.caption(f":material/psychology: {tr('chat.memory_begins')}", help=tr("chat.memory_help"),
                   width="content")  # fmt: skip


def _num_shown(chat: Chat) -> int:
    wanted = PAGE_MESSAGES + int(st.session_state.get(MORE_KEY, 0))
    if (found := st.session_state.get(FOUND_KEY)) is not None:
        places = [place for place, one in enumerate(chat.messages) if one.id == found]
        wanted = max(wanted, len(chat.messages) - places[0] + 2) if places else wanted
    return wanted


def _show_more(num_shown: int) -> None:
    st.session_state[MORE_KEY] = num_shown


def _draw_message(chat: Chat, message: Message, faces: Faces, is_last: bool) -> None:
    if not message.is_hidden:
        _draw_seen(chat, message, faces, is_last)
        return
    st.html(HIDDEN_STYLE)
    with st.container(key=f"hidden_message_{message.id}"):
        _draw_seen(chat, message, faces, is_last)


def _draw_seen(chat: Chat, message: Message, faces: Faces, is_last: bool) -> None:
    with st.chat_message(message.role, avatar=faces.of_message(message)):
        _draw_name(message, faces)
        if message.is_hidden:
            st.caption(f":material/visibility_off: {tr('chat.hidden')}")
        if is_edited(message):
            draw_editor(chat, message)
            return
        if st.session_state.get(FOUND_KEY) == message.id:
            scroll_here(f"found_{message.id}")
        if message.role == "user":
            with st.container(horizontal=True, gap="small", wrap=False, key=f"question_{message.id}"):
                with st.container(gap="small"):
                    draw_question(message.text)
                with icons(f"message_{message.id}"):
                    draw_actions(chat, message, is_last)
            draw_files(message)
        else:
            _draw_answer(chat, message, is_last)


def _draw_name(message: Message, faces: Faces) -> None:
    """Who speaks, wherever a character does."""
    if name := faces.name_of(message):
        st.markdown(f"**{escape(shortened(name, NAME_CHARS))}**")


def _draw_answer(chat: Chat, message: Message, is_last: bool) -> None:
    if message.thought is not None:
        draw_thought(message.id, message.thought)
    if message.text:
        draw_answer_text(message.id, message.text)
    if (error := error_of(message.stats)) is not None and message.state == "failed":
        show_error(error)
    with icons(f"message_{message.id}"):
        draw_actions(chat, message, is_last)
        if footnotes := list(_footnotes(message)):
            st.caption(" · ".join(footnotes), width="content")


def _footnotes(message: Message) -> Iterable[str]:
    stats = message.stats
    reason = "cancelled" if message.state == "stopped" else stats.get("reason")
    if reason in ("cancelled", "length", "context"):
        yield tr(f"chat.ended_{reason}")
    elif reason in ("end", "stop") and not message.text:
        yield tr("chat.ended_thought" if has_words(message.thought) else "chat.ended_empty")
    if stats.get("tokens") and shows_speed():
        yield from _figures(stats)


def _figures(stats: dict[str, Any]) -> Iterable[str]:
    yield tr("chat.token" if stats["tokens"] == 1 else "chat.tokens", count=stats["tokens"])
    if stats.get("tokens_per_s"):
        yield tr("chat.speed", rate=f"{stats['tokens_per_s']:.1f}")
    if stats.get("first_token_s") is not None:
        yield tr("chat.first_token", seconds=f"{stats['first_token_s']:.2f}")
    if reused := stats.get("reused_tokens"):
        yield tr("chat.reused_one" if reused == 1 else "chat.reused", count=reused)


def shows_speed() -> bool:
    return preferences().get("chat", "speed") != "off"


def _draw_growing(chat: Chat, message: Message, faces: Faces) -> None:
    """Draw the answer that is being written. Once it ends, the whole page is drawn again."""
    answer, written = recorder().answer(message.id), recorder().written(message.id)
    with st.chat_message(message.role, avatar=faces.of_message(message)):
        _draw_name(message, faces)
        if answer is None or written is None:
            if message.thought is not None:
                draw_thought(message.id, message.thought)
            draw_answer_text(message.id, message.text)
        else:
            _draw_written(message.id, answer, written)
            if problem := recorder().problem(message.id):
                show_error(problem)
    if answer is None or not answer.is_running:
        st.rerun()


def _draw_written(message: int, answer: Answer, written: Written) -> None:
    if written.thought is not None:
        draw_thought(message, written.thought, written.is_thinking)
    if written.text:
        draw_answer_text(message, written.text)
    if answer.is_running and answer.is_paused:
        st.markdown(f":shimmer[{tr('chat.phase_paused')}]")
    elif answer.is_running and not answer.text:
        st.markdown(f":shimmer[{tr(f'chat.phase_{answer.phase}')}]")
    if not answer.is_running and answer.num_tokens and shows_speed():
        st.caption(" · ".join(_figures(stats_of(answer, ""))))


def draw_impersonation(line: ImpersonationDraft, faces: Faces) -> None:
    """Draw the message that the model writes for the person."""
    redraw_every(POLL_S, _draw_impersonation, line, faces)


def _draw_impersonation(line: ImpersonationDraft, faces: Faces) -> None:
    with st.chat_message("user", avatar=faces.of("user")):
        st.text(line.text)
        st.markdown(f":shimmer[{tr('chat.writing_line')}]")
    if not line.answer.is_running:
        st.rerun()


def _draw_noted(chat: Chat, faces: Faces) -> None:
    with st.chat_message("user", avatar=faces.of("user")):
        draw_question(chat.info.draft)
        if files := chat_store().draft_files(chat.info.id):
            st.caption(
                f":material/description: {escape(', '.join(shortened(file.name, NAME_CHARS) for file in files))}"
            )
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(tr("chat.queued"), width="content")
            st.button(tr("chat.take_back"), key=f"chat_take_back_{chat.info.id}", type="tertiary", on_click=take_noted,
                      args=(chat.info.id,))  # fmt: skip
