"""Which chat this tab shows, how a question is asked, how messages are drawn; answering is the engine's job.

The address names the chat (?chat=3, ?chat=new), so that a reloaded or reopened tab finds it again, with the
answer that is being written.
"""

from __future__ import annotations

from collections.abc import Iterable

import streamlit as st

from core.chat.conversation import Conversation, Message
from core.chat.template import Turn, read_template
from core.engine.answer import Answer
from core.errors import DeckError, EngineError
from core.settings import models_dir
from ui.errors import show_error
from ui.fragment import redraw_every
from ui.i18n import tr
from ui.markdown import answer_markdown, escape, shortened
from ui.resources import conversations, queued_questions, runner
from ui.routing import CHAT_PAGE
from ui.sampling import chosen_sampling

PARAM, NEW = "chat", "new"
# This tab's chat: its number, or None for a new one.
CHAT_KEY = "chat_number"
INPUT_KEY = "chat_input"
ERROR_KEY = "chat_error"
POLL_S = 0.1
AVATARS = {"user": ":material/person:", "assistant": ":material/smart_toy:"}
LIST_CHARS = 26
MAX_NUMBER_DIGITS = 15


def current_chat() -> Conversation | None:
    """This tab's chat: the address's, else the one shown last, else the newest that is being answered."""
    if PARAM in st.query_params:
        return conversations().get(_number(st.query_params[PARAM]))
    if CHAT_KEY in st.session_state:
        return conversations().get(st.session_state[CHAT_KEY] or 0)
    return next((chat for chat in conversations().newest_first() if chat.running), None)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) <= MAX_NUMBER_DIGITS else 0


def is_gone() -> bool:
    """Whether the address names a chat that this process does not have."""
    return st.query_params.get(PARAM, NEW) != NEW and current_chat() is None


def arrive(has_arrived: bool) -> Conversation | None:
    """The chat to draw. On arrival from another page the address gets its name.

    Later that is left to the person's own steps, or the browser's way back would end here.
    """
    chat = current_chat()
    if not is_gone():
        st.session_state[CHAT_KEY] = chat.number if chat else None
    if has_arrived and chat is not None:
        show_chat(chat)
    return chat


def show_chat(chat: Conversation | None) -> None:
    """Make `chat` this tab's, None a new one."""
    st.session_state[CHAT_KEY] = chat.number if chat else None
    name = str(chat.number) if chat else NEW
    if st.query_params.get(PARAM) != name:
        st.query_params[PARAM] = name


def submit() -> None:
    """Ask what was typed, or keep it until the answer before it is finished; put it back where that fails."""
    text, chat = st.session_state[INPUT_KEY] or "", current_chat()
    if chat is not None and chat.running:
        earlier = queued_questions().get(chat.number)
        queued_questions()[chat.number] = f"{earlier}\n\n{text}" if earlier else text
    elif not ask(text):
        st.session_state[INPUT_KEY] = text


def ask_queued(chat: Conversation | None) -> None:
    """Ask what was typed while the chat's last answer was being written, now that it is finished."""
    if chat is None or chat.running or runner().state.phase != "ready":
        return
    text = queued_questions().pop(chat.number, None)
    if text is not None and not ask(text):
        st.session_state[INPUT_KEY] = text


def ask(text: str) -> bool:
    """Ask `text` in this tab's chat; False where nothing was asked."""
    chat = current_chat()
    if not text.strip() or (chat is not None and chat.running):
        return False
    try:
        answer = begin_answer([*turns(chat), Turn(role="user", content=text)])
    except DeckError as error:
        st.session_state[ERROR_KEY] = error
        return False
    st.session_state.pop(ERROR_KEY, None)
    chat = chat or conversations().begin()
    chat.ask(text, answer)
    show_chat(chat)
    return True


def begin_answer(spoken: list[Turn]) -> Answer:
    state = runner().state
    if state.phase != "ready" or state.model is None:
        raise EngineError("nothing_loaded")
    prompt = read_template(models_dir() / state.model).render(spoken)
    return runner().generate(prompt, chosen_sampling())


def turns(chat: Conversation | None) -> list[Turn]:
    """What was said, for the template. A question without an answer is left out, so that turns alternate."""
    messages = chat.messages if chat else []
    pairs = [(ask, say) for ask, say in zip(messages[::2], messages[1::2], strict=False) if say.text.strip()]
    return [Turn(role=message.role, content=message.text) for pair in pairs for message in pair]


def delete_chat(number: int) -> None:
    conversations().delete(number)
    queued_questions().pop(number, None)
    show_chat(None)


def draw_transcript(chat: Conversation) -> None:
    for message in chat.messages:
        if message.is_running:
            redraw_every(POLL_S, _draw_growing, message)
        else:
            draw_message(message)
    if text := queued_questions().get(chat.number):
        with st.chat_message("user", avatar=AVATARS["user"]):
            st.text(text)
            st.caption(tr("chat.queued"))


def _draw_growing(message: Message) -> None:
    is_running = message.is_running
    draw_message(message)
    if not is_running:
        st.rerun()


def draw_message(message: Message) -> None:
    with st.chat_message(message.role, avatar=AVATARS[message.role]):
        if message.role == "user":
            st.text(message.text)
        elif message.answer is None:
            st.markdown(answer_markdown(message.text))
        else:
            _draw_answer(message.answer)


def _draw_answer(answer: Answer) -> None:
    phase, text = answer.phase, answer.text
    if text:
        st.markdown(answer_markdown(text))
    elif phase != "done":
        st.markdown(f":shimmer[{tr(f'chat.phase_{phase}')}]")
    if answer.error is not None:
        show_error(answer.error)
    if phase == "done" and (footnotes := list(_footnotes(answer))):
        st.caption(" · ".join(footnotes))


def _footnotes(answer: Answer) -> Iterable[str]:
    if answer.reason in ("cancelled", "length", "context"):
        yield tr(f"chat.ended_{answer.reason}")
    elif answer.reason in ("end", "stop") and not answer.text:
        yield tr("chat.ended_empty")
    stats = answer.stats
    if stats is not None and stats.num_tokens:
        yield tr("chat.token" if stats.num_tokens == 1 else "chat.tokens", count=stats.num_tokens)
        if stats.decode_tokens_per_s:
            yield tr("chat.speed", rate=f"{stats.decode_tokens_per_s:.1f}")
        yield tr("chat.first_token", seconds=f"{stats.queued_s + stats.prefill_s:.2f}")


def chat_links(chats: list[Conversation]) -> None:
    """A link to each chat, for other pages."""
    for chat in chats:
        st.page_link(CHAT_PAGE, label=escape(chat.title), icon=_chat_icon(chat), width="stretch",
                     query_params={PARAM: str(chat.number)})  # fmt: skip


def chat_list(chats: list[Conversation], current: Conversation | None) -> None:
    """All chats as buttons, for the sidebar of the chat page; the one that is shown stands out."""
    with st.container(gap="xxsmall"):
        for chat in chats:
            st.button(
                escape(shortened(chat.title, LIST_CHARS)),
                key=f"chat_open_{chat.number}",
                icon=_chat_icon(chat),
                type="secondary" if chat is current else "tertiary",
                wrap=False,
                on_click=show_chat,
                args=(chat,),
            )


def _chat_icon(chat: Conversation) -> str:
    return "spinner" if chat.running else ":material/chat_bubble:"
