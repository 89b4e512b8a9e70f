"""What is around the chat's input: stop, the extras, how full the context is, undo."""

from __future__ import annotations

import streamlit as st

from core.chat.prompt_context import Prompt
from core.chat.records import Chat
from core.chat.truncation import room_for_prompt
from core.common.errors import DeckError
from ui.chat.actions import START, impersonate, stop, undo
from ui.chat.feedback import NOTICE_KEY, Notice
from ui.chat.files import draw_next_files
from ui.chat.input_watch import watch_input
from ui.chat.new_chat import NEW_ID
from ui.chat.session import EDIT_KEY, INPUT_KEY, is_busy, tag_of
from ui.chat.setup import prompt_context, prompt_of, sampling_of
from ui.shared.errors import sentence
from ui.shared.fragment import redraw_every
from ui.shared.i18n import tr
from ui.shared.icon_buttons import icons
from ui.shared.identity import held, key_of, take_held
from ui.shared.lore import left_out_words
from ui.shared.resources import engine, recorder
from ui.shared.shortcuts import LEAVE

COUNTER_POLL_S = 0.5
# From here on the context is nearly full.
WARN_SHARE = 0.85
FITTED_KEY = "chat_fitted"


def fitted_prompt(chat: Chat) -> Prompt | DeckError | None:
    """The prompt that the model would read now, or why there is none; None without a model. Kept for each state."""
    state = engine().state
    if state.phase != "ready":
        return None
    at_rest = Chat(chat.info, tuple(one for one in chat.messages if one.state != "writing"))
    try:
        # Who speaks and listens, what they know and how the model is asked may have been changed on another page.
        context = prompt_context(at_rest)
    except DeckError as error:
        return error
    messages = tuple((one.id, len(one.whole), one.is_hidden) for one in at_rest.messages)
    key = (state.facts, chat.info.id, context, messages)
    if st.session_state.get(FITTED_KEY, (None,))[0] != key:
        found: Prompt | DeckError
        try:
            found = prompt_of(at_rest, context)
        except DeckError as error:
            found = error
        st.session_state[FITTED_KEY] = (key, found)
    prompt: Prompt | DeckError = st.session_state[FITTED_KEY][1]
    return prompt


def draw_composer(chat: Chat, prompt: Prompt | DeckError | None) -> None:
    """The row above the input. Its places are always the same: an input that moves loses its focus."""
    busy = chat.info.id != NEW_ID and is_busy(chat)
    # A notebook has buttons of its own.
    is_chat = chat.info.mode != "notebook"
    with st.container(gap="small"):
        files_tokens = draw_next_files(chat, prompt) if is_chat else 0
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if busy and is_chat:
            # While a message is edited, the key ends that.
            st.button(tr("chat.stop"), key=f"chat_stop_{chat.info.id}", icon=":material/stop_circle:", help=LEAVE,
                      shortcut=None if EDIT_KEY in st.session_state else LEAVE, on_click=stop,
                      args=(chat.info.id,))  # fmt: skip
        elif prompt is not None and is_chat:
            _draw_extras(chat)
        notice: Notice | None = st.session_state.get(NOTICE_KEY)
        if notice is not None and (notice.kind == "chat" or notice.chat == chat.info.id):
            draw_notice(notice)
        if busy:
            redraw_every(COUNTER_POLL_S, _count_while_busy, chat, prompt)
        else:
            _draw_counter(chat, prompt)
        if is_chat:
            _watch_typed(chat, files_tokens)


def _watch_typed(chat: Chat, files_tokens: int) -> None:
    state = engine().state
    if state.facts is None:
        return
    context = state.facts.context_tokens
    try:
        answer = sampling_of(chat.info).max_new_tokens
    except DeckError:
        answer = 0
    watch_input(INPUT_KEY, state.model or "", files_tokens, room_for_prompt(context, answer))


def draw_notice(notice: Notice) -> None:
    """The button that takes back a deletion; a message's is shown in its own chat only."""
    key = f"chat_undo_{notice.kind}_{notice.number}"
    st.button(tr(f"chat.undo_{notice.kind}"), key=key, icon=":material/undo:", type="tertiary",
              on_click=undo, args=(notice,))  # fmt: skip


def _draw_extras(chat: Chat) -> None:
    tag = tag_of(chat.info)
    start = held(START, tag)
    with (
        icons(f"extras_{tag}"),
        st.popover(tr("chat.extras"), key=f"chat_extras_{tag}", type="tertiary" if not start else "secondary",
                   icon=":material/edit_note:", help=tr("chat.extras")),
    ):  # fmt: skip
        key = key_of(START, tag, start)
        st.text_area(tr("chat.start"), key=key, height=80, placeholder=tr("chat.start_placeholder"),
                     help=tr("chat.start_help"), on_change=take_held, args=(START, tag, key))  # fmt: skip
        st.button(tr("chat.my_line"), key=f"chat_my_line_{tag}", icon=":material/record_voice_over:",
                  help=tr("chat.my_line_help"), disabled=not chat.messages, on_click=impersonate,
                  args=(tag,))  # fmt: skip


def _count_while_busy(chat: Chat, prompt: Prompt | DeckError | None) -> None:
    """Draw the page again where nothing else will: an answer is written down a moment before it counts as ended, and a
    page that is drawn between the two has no growing message."""
    if not is_busy(chat):
        st.rerun()
    _draw_counter(chat, prompt)


def _draw_counter(chat: Chat, prompt: Prompt | DeckError | None) -> None:
    facts = engine().state.facts
    if prompt is None or facts is None:
        return
    with st.container(horizontal=True, horizontal_alignment="right"):
        if isinstance(prompt, DeckError):
            st.caption(f":red[:material/error:] {tr('chat.context_over')}", help=sentence(prompt), width="content")
        else:
            _draw_figures(chat, prompt, facts.context_tokens)


def _draw_figures(chat: Chat, prompt: Prompt, context: int) -> None:
    """How many tokens of the context are used, with the parts, and the lore that was left out, in a tooltip."""
    fitted = prompt.fitted
    answer = recorder().answer(chat.messages[-1].id) if chat.messages else None
    # An answer that goes on, or was begun before something was changed, has another prompt than the next one.
    prompt_tokens = (answer.prompt_tokens if answer else 0) or fitted.prompt_tokens
    used = prompt_tokens + (answer.num_tokens if answer else 0)
    facts = engine().state.facts
    is_estimate = facts is not None and facts.remote is not None and not facts.remote.counts_tokens
    shown = f"≈ {used:,}" if is_estimate else f"{used:,}"
    full = f":orange[{shown}]" if used > WARN_SHARE * context else shown
    about = tr("chat.context_help", prompt=f"{prompt_tokens:,}", history=f"{fitted.history_tokens:,}",
               room=f"{max(0, context - used):,}", context=f"{context:,}")  # fmt: skip
    if is_estimate:
        about = f"{about}\n\n{tr('remote.counts_about')}"
    if words := left_out_words(prompt.left_out):
        about = f"{about}\n\n{words}"
    st.caption(f":material/data_usage: {full} / {context:,}", help=about, width="content")
