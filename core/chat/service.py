"""What a chat's buttons mean: a prompt to the engine, a message in the history, and the answer that grows into it.

Knows neither pages nor characters: whoever calls says by a Setup how the model is asked and who speaks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from core.chat.database import ChatStoreError
from core.chat.modes import Style, begun, notebook_pieces
from core.chat.recorder import Recorder
from core.chat.records import Message
from core.chat.store import ChatStore
from core.chat.template import Turn
from core.chat.truncation import Fitted, Pieces, fit
from core.chat.turn_rendering import Voice
from core.engine.answer import Answer
from core.engine.interface import Engine
from core.engine.sampling_params import Sampling


@dataclass(frozen=True, slots=True)
class Composed:
    """The pieces of a prompt. `places` says for each turn of their history which message it is, None for none."""

    pieces: Pieces
    places: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Setup:
    """How the model is asked in one chat. `compose` makes pieces of what was said; its flag: the context is full.

    `count_prompt` counts whole prompts where `count_tokens` only estimates pieces.
    """

    model: str
    style: Style
    count_tokens: Callable[[str], int]
    context_tokens: int
    sampling: Sampling
    compose: Callable[[Sequence[Turn], bool], Composed]
    count_prompt: Callable[[str], int] | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads. `begins_at` is the index of the oldest message in it: where its memory begins."""

    pieces: Pieces
    fitted: Fitted
    begins_at: int


@dataclass(frozen=True, slots=True)
class Line:
    """A person's next line, as the model writes it for them; it is in no history until they send it."""

    answer: Answer
    tidy: Callable[[str], str]

    @property
    def text(self) -> str:
        return self.tidy(self.answer.text)


def turns_of(messages: Sequence[Message]) -> list[Turn]:
    return [Turn(role="user" if one.role == "user" else "assistant", content=one.text) for one in messages]


def prepare(said: Sequence[Turn], setup: Setup, voice: Voice = "assistant", start: str = "") -> Prompt:
    """The prompt for the next message. Messages without a word are no turns. Raises ContextError, TemplateError."""
    spoken = [(place, turn) for place, turn in enumerate(said) if turn["content"].strip()]
    prompt = _prepare(spoken, setup, voice, start, is_full=False)
    return prompt if prompt.begins_at == 0 else _prepare(spoken, setup, voice, start, is_full=True)


def _prepare(spoken: list[tuple[int, Turn]], setup: Setup, voice: Voice, start: str, is_full: bool) -> Prompt:
    composed = setup.compose([turn for _, turn in spoken], is_full)
    pieces = replace(composed.pieces, voice=voice, start=start)
    fitted = _fit(pieces, setup)
    if fitted.first_kept == 0:
        return Prompt(pieces, fitted, 0)
    kept = [place for place in composed.places[fitted.first_kept :] if place is not None]
    return Prompt(pieces, fitted, spoken[kept[0]][0] if kept else len(spoken))


def prepare_text(text: str, setup: Setup) -> Prompt:
    """The prompt for a notebook's text to go on. Raises ContextError."""
    pieces = notebook_pieces(text)
    fitted = _fit(pieces, setup)
    return Prompt(pieces, fitted, fitted.first_kept)


def _fit(pieces: Pieces, setup: Setup) -> Fitted:
    longest = setup.sampling.max_new_tokens
    render, count = setup.style.render, setup.count_tokens
    return fit(pieces, render, count, setup.context_tokens, longest, setup.count_prompt)


class Asker:
    """Asks the one engine for all chats. Whatever raises a DeckError has left the history as it was.

    The engine is asked before the history is written: where it refuses, nothing was said.
    """

    def __init__(self, store: ChatStore, recorder: Recorder, engine: Engine) -> None:
        self._store, self._recorder, self._engine = store, recorder, engine
        self._lock = threading.Lock()
        # The chats in which somebody begins something at this moment; the message that is written in a chat; the line.
        self._beginning: set[int] = set()
        self._writing: dict[int, int] = {}
        self._lines: dict[int, Line] = {}

    def send(self, chat: int, text: str, after: int | None, setup: Setup, start: str = "") -> int:
        """Say `text` after the message that was seen last; the answer's message, which begins with `start`."""
        messages = self._store.read(chat).messages
        if after != (messages[-1].id if messages else None):
            raise ChatStoreError("chat_moved_on")
        prompt = prepare([*turns_of(messages), Turn(role="user", content=text)], setup, start=start)

        def begin() -> int:
            question = self._store.append_user(chat, text, after)
            return self._store.begin_answer(chat, question, begun(start))

        return self._begin(chat, prompt, setup, begin)

    def reply(self, chat: int, after: int, setup: Setup, start: str = "") -> int:
        """Answer the last message, to which there is no answer."""
        prompt = prepare(turns_of(self._store.read(chat).messages), setup, start=start)
        return self._begin(chat, prompt, setup, lambda: self._store.begin_answer(chat, after, begun(start)))

    def regenerate(self, chat: int, message: int, setup: Setup, start: str = "") -> int:
        """Answer anew; the old answer stays as a version."""
        before, _ = self._split(chat, message)
        prompt = prepare(turns_of(before), setup, start=start)
        return self._begin(chat, prompt, setup, lambda: self._store.begin_version(message, begun(start)))

    def ask_anew(self, chat: int, message: int, text: str, setup: Setup) -> int:
        """Ask something else in a question's place; the old one stays as a version, with what followed it."""
        before, _ = self._split(chat, message)
        prompt = prepare([*turns_of(before), Turn(role="user", content=text)], setup)
        return self._begin(
            chat, prompt, setup, lambda: self._store.begin_answer(chat, self._store.add_version(message, text))
        )

    def go_on(self, chat: int, message: int, setup: Setup) -> int:
        """Let the last answer go on where it ended."""
        before, last = self._split(chat, message)
        prompt = prepare(turns_of(before), setup, start=last.text)

        def begin() -> int:
            self._store.reopen_answer(message)
            return message

        return self._begin(chat, prompt, setup, begin)

    def write_on(self, chat: int, text: str, setup: Setup) -> int:
        """Let a notebook's `text` go on, as a new version: the one before it can be brought back."""
        messages = self._store.read(chat).messages
        prompt = prepare_text(text, setup)

        def begin() -> int:
            page = messages[-1].id if messages else self._store.append_text(chat, text)
            return self._store.begin_version(page, text)

        return self._begin(chat, prompt, setup, begin)

    def impersonate(self, chat: int, setup: Setup, start: str = "") -> Line:
        """Begin to write what the person might say next."""
        prompt = prepare(turns_of(self._store.read(chat).messages), setup, voice="user", start=start)
        style, pieces = setup.style, prompt.pieces
        with self._alone(chat):
            line = Line(self._ask(prompt, setup), lambda text: style.tidy(text, pieces))
            with self._lock:
                self._lines[chat] = line
            return line

    def line(self, chat: int) -> Line | None:
        return self._lines.get(chat)

    def take_line(self, chat: int) -> str | None:
        """What the model wrote for the person, once it is finished; only one tab gets it."""
        with self._lock:
            line = self._lines.get(chat)
            if line is None or line.answer.is_running:
                return None
            del self._lines[chat]
        return line.text

    def writing(self, chat: int) -> int | None:
        """The message that is being written in a chat by this process, until it is on the disk to its end."""
        message = self._writing.get(chat)
        return message if message is not None and self._recorder.answer(message) is not None else None

    def is_busy(self, chat: int) -> bool:
        line = self._lines.get(chat)
        return self.writing(chat) is not None or (line is not None and line.answer.is_running)

    def stop(self, chat: int) -> None:
        """End whatever is being written in a chat, and keep it."""
        if (message := self.writing(chat)) is not None:
            self._recorder.stop(message)
        if (line := self._lines.get(chat)) is not None:
            line.answer.cancel()

    @contextmanager
    def _alone(self, chat: int) -> Iterator[None]:
        """While something begins in a chat: two tabs cannot begin two things, of which `stop` would know one.

        Raises ChatStoreError where something is being written there.
        """
        with self._lock:
            if chat in self._beginning or self.is_busy(chat):
                raise ChatStoreError("chat_is_writing")
            self._beginning.add(chat)
            for other in [one for one in self._writing if self.writing(one) is None]:
                del self._writing[other]
        try:
            yield
        finally:
            with self._lock:
                self._beginning.discard(chat)

    def _split(self, chat: int, message: int) -> tuple[tuple[Message, ...], Message]:
        """What stands before a message, and the message. Raises where it is not shown any more."""
        messages = self._store.read(chat).messages
        for place, one in enumerate(messages):
            if one.id == message:
                return messages[:place], one
        raise ChatStoreError("message_changed")

    def _ask(self, prompt: Prompt, setup: Setup) -> Answer:
        pieces = prompt.pieces
        stop = setup.style.stop_strings(pieces.voice, setup.sampling.stop)
        continues = bool(pieces.start.strip()) or (setup.style.mode == "notebook" and bool(pieces.history))
        return self._engine.generate(prompt.fitted.prompt, replace(setup.sampling, stop=stop), continues=continues)

    def _begin(self, chat: int, prompt: Prompt, setup: Setup, begin: Callable[[], int]) -> int:
        style, pieces = setup.style, prompt.pieces
        with self._alone(chat):
            answer = self._ask(prompt, setup)
            try:
                message = begin()
                self._recorder.follow(message, answer, setup.model, lambda text: style.tidy(text, pieces))
            except BaseException:  # Whatever it is: nobody would follow the answer.
                answer.cancel()
                raise
            with self._lock:
                self._writing[chat] = message
        return message
