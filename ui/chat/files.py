"""The files of a chat's next question: read, held until they are sent, and shown; those of a question that was asked.

The input gives a file away only when something is sent, so the browser sends it alone, as soon as it is there
(ui/chat/input_watch.py). It is then held here, with its text, by the tag that the chat was born with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from core.chat.prompt_context import Prompt
from core.chat.question import with_files
from core.chat.records import Chat, Message
from core.chat.truncation import ContextError
from core.common.errors import DeckError, InputError
from core.documents.document import Document
from core.documents.reading import read_document
from ui.chat.feedback import show_errors
from ui.chat.session import born_tag
from ui.chat.setup import prompt_context
from ui.shared.errors import sentence, show_error
from ui.shared.i18n import text, tr
from ui.shared.icon_buttons import icons
from ui.shared.markdown import escape, shortened

FILES_KEY, OPEN_KEY = "chat_files", "chat_file_open"
MAX_FILES = 20
# Of chats with files that were not sent, the last ones: a file may have megabytes of text.
MAX_CHATS = 8
NAME_CHARS = 24
# A browser becomes slow with more; the whole text can be downloaded.
SHOWN_CHARS, SHOWN_PX = 50_000, 480
TEXT_TYPE, TEXT_ENDING = "text/plain", ".txt"


@dataclass
class NextFiles:
    """What was added to a chat's next question. Of files that are too long `is_cut` sends the beginning.

    `waiting` are not read yet, `refused` is why others cannot be sent. `measured` holds what the last `_measure` found.
    """

    files: list[Document] = field(default_factory=list)
    waiting: list[UploadedFile] = field(default_factory=list)
    refused: list[DeckError] = field(default_factory=list)
    is_cut: bool = False
    measured: Measure | None = None


@dataclass(frozen=True, slots=True)
class Measure:
    """How the files `of` a question fit `beside` a prompt: the tokens of each, and of what would be sent of all.

    `error` says why they do not.
    """

    beside: Prompt
    of: tuple[tuple[Document, ...], bool]
    tokens: tuple[int, ...]
    sent_tokens: int
    error: DeckError | None


def next_files(tag: str) -> NextFiles:
    chats: dict[str, NextFiles] = st.session_state.setdefault(FILES_KEY, {})
    held = chats.pop(tag, NextFiles())
    others = [(other, one) for other, one in chats.items() if one.files or one.waiting]
    st.session_state[FILES_KEY] = dict([*others[1 - MAX_CHATS :], (tag, held)])
    return held


def forget_files(tag: str) -> None:
    st.session_state.get(FILES_KEY, {}).pop(tag, None)


def add_files(tag: str, uploads: Sequence[UploadedFile]) -> None:
    """Hold what was just added; it is read where the reader sees that it takes its time."""
    held = next_files(tag)
    held.refused = []
    room = MAX_FILES - len(held.files) - len(held.waiting)
    held.waiting += uploads[:room]
    if len(uploads) > room:
        held.refused.append(InputError("files_many", limit=MAX_FILES, name=uploads[room].name))


def read_waiting(tag: str) -> None:
    held = next_files(tag)
    while held.waiting:
        file = held.waiting[0]
        try:
            document = read_document(file.name, file.getvalue())
            # A file that is added again was changed meanwhile.
            held.files = [*(one for one in held.files if one.name != document.name), document]
        except DeckError as error:
            held.refused.append(error)
        held.waiting = held.waiting[1:]


def bring_back(tag: str, files: Sequence[Document]) -> None:
    """Hold files that were sent and taken back."""
    held = next_files(tag)
    names = {file.name for file in files}
    held.files = [*files, *(file for file in held.files if file.name not in names)]


# The next question's --------------------------------------------------------------------------------------------------


def draw_next_files(chat: Chat, prompt: Prompt | DeckError | None) -> int:
    """What is held for the next question, and whether it fits. Gives its tokens; 0 where none can be counted."""
    tag = born_tag(chat.info)
    held = next_files(tag)
    if held.waiting:
        with st.spinner(tr("chat.file_reading", name=shortened(held.waiting[0].name, NAME_CHARS))):
            read_waiting(tag)
    for error in held.refused:
        show_error(error)
    if not held.files:
        return 0
    measure = None
    if prompt is not None and not isinstance(prompt, DeckError):
        known = held.measured
        if known is None or known.beside is not prompt or known.of != (tuple(held.files), held.is_cut):
            known = held.measured = _measure(chat, held, prompt)
        measure = known
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        for place, file in enumerate(held.files):
            with st.container(horizontal=True, gap="xsmall", width="content", wrap=False):
                # Before the file's name, which a narrow window cuts off.
                with icons(f"file_{tag}_{place}"):
                    st.button(tr("chat.file_remove", name=shortened(file.name, NAME_CHARS)), icon=":material/close:",
                              key=f"chat_file_remove_{tag}_{place}", type="tertiary", help=tr("chat.file_remove_help"),
                              on_click=_remove, args=(tag, file))  # fmt: skip
                _draw_chip(file, f"{tag}_{place}", measure.tokens[place] if measure is not None else None)
    if measure is None:
        return 0
    _draw_fit(tag, held, measure)
    return measure.sent_tokens


def _measure(chat: Chat, held: NextFiles, prompt: Prompt) -> Measure:
    of = (tuple(held.files), held.is_cut)
    messages = [one for one in chat.messages if one.state != "writing"]
    try:
        context = prompt_context(Chat(chat.info, tuple(messages)))
        count, turns = context.model.counter.count, context.turns_of(messages)
        tokens = tuple(count(with_files("", [file])) for file in held.files)
        error: DeckError | None = None
        files: Sequence[Document] = held.files
        try:
            context.prepare([*turns, context.asked("", files)])
        except ContextError as found:
            error = found
            if held.is_cut:
                files = context.files_that_fit(turns, "", files)
        return Measure(prompt, of, tokens, count(with_files("", files)), error)
    except DeckError as found:
        return Measure(prompt, of, (0,) * len(held.files), 0, found)


def _draw_fit(tag: str, held: NextFiles, measure: Measure) -> None:
    error = measure.error
    if error is None:
        return
    if error.key != "message_too_long":
        st.warning(sentence(error), icon=":material/warning:")
        return
    key = f"chat_files_cut_{tag}"
    words = "files_cut" if held.is_cut else "files_long"
    tokens, room = int(error.params["tokens"]), max(0, int(error.params["limit"]))
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.toggle(tr("chat.files_beginning"), held.is_cut, key=key, help=tr("chat.files_beginning_help"),
                  on_change=_set_cut, args=(tag, key))  # fmt: skip
        mark = "" if held.is_cut else ":red[:material/error:] "
        st.caption(mark + tr(f"chat.{words}", tokens=f"{tokens:,}", room=f"{room:,}", sent=f"{measure.sent_tokens:,}"),
                   width="content")  # fmt: skip


@show_errors
def _set_cut(tag: str, key: str) -> None:
    next_files(tag).is_cut = st.session_state[key]


@show_errors
def _remove(tag: str, file: Document) -> None:
    held = next_files(tag)
    held.refused = []
    held.files = [one for one in held.files if one is not file]
    if not held.files:
        forget_files(tag)


# Any question's -------------------------------------------------------------------------------------------------------


def draw_files(message: Message) -> None:
    """The files below a question, each of which opens to its text."""
    if message.files:
        with st.container(horizontal=True, gap="small"):
            for place, file in enumerate(message.files):
                _draw_chip(file, f"{message.id}_{place}")


def _draw_chip(file: Document, key: str, tokens: int | None = None) -> None:
    parts = [escape(shortened(file.name, NAME_CHARS)), size_words(file.size_bytes)]
    if tokens is not None:
        parts.append(tr("chat.tokens", count=f"{tokens:,}"))
    if not file.is_whole:
        parts.append(tr("chat.file_part" if file.text else "chat.file_missing"))
    st.button(" · ".join(parts), icon=":material/description:", key=f"chat_file_{key}", disabled=not file.text,
              on_click=_open, args=(file,))  # fmt: skip


def _open(file: Document) -> None:
    st.session_state[OPEN_KEY] = file


def draw_open_file() -> None:
    """The text of the file that was just clicked, over the page."""
    file: Document | None = st.session_state.pop(OPEN_KEY, None)
    if file is not None:
        st.dialog(escape(shortened(file.name, NAME_CHARS)), width="large")(_show_text)(file)


def _show_text(file: Document) -> None:
    if len(file.text) > SHOWN_CHARS:
        st.caption(tr("chat.file_shown", shown=f"{SHOWN_CHARS:,}", chars=f"{len(file.text):,}"))
    st.code(file.text[:SHOWN_CHARS], language=None, wrap_lines=True, height=SHOWN_PX)
    st.download_button(tr("chat.file_download"), file.text, file.name + TEXT_ENDING, TEXT_TYPE, on_click="ignore",
                       key="chat_file_download", icon=":material/download:")  # fmt: skip


def size_words(num_bytes: int) -> str:
    if num_bytes < 1000:
        return text("chat.file_bytes", count=num_bytes)
    return f"{num_bytes / 1e3:,.0f} KB" if num_bytes < 1e6 else f"{num_bytes / 1e6:,.1f} MB"
