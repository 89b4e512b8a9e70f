"""What a chat's buttons do: a prompt for the engine, a message in the history, and the answer that grows into it.

The caller's PromptContext says how the model is asked and who speaks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from core.chat.database import ChatStoreError
from core.chat.prompt_context import Prompt, PromptContext
from core.chat.recorder import Recorder, thought_of
from core.chat.records import Message
from core.chat.stats import variables_of
from core.chat.store import ChatStore
from core.documents.document import Document
from core.engine.answer import Answer
from core.engine.interface import Engine
from core.engine.request_options import RequestOptions
from core.engine.thought import Parts


@dataclass(frozen=True, slots=True)
class ImpersonationDraft:
    """A person's next message, as the model writes it for them. It is in no history until the person sends it."""

    answer: Answer
    clean_answer: Callable[[str], str]

    @property
    def text(self) -> str:
        return self.clean_answer(self.answer.text)


class ChatService:
    """Asks the one engine for all chats. Whatever raises a DeckError has left the history as it was.

    The engine is asked before the history is written: where it refuses, nothing was said.
    """

    def __init__(self, store: ChatStore, recorder: Recorder, engine: Engine) -> None:
        self._store, self._recorder, self._engine = store, recorder, engine
        self._lock = threading.Lock()
        # The chats in which a tab begins something at this moment.
        self._beginning: set[int] = set()
        # By chat: the message that is being written, and the person's own next one.
        self._writing: dict[int, int] = {}
        self._impersonations: dict[int, ImpersonationDraft] = {}

    def send(
        self,
        chat: int,
        text: str,
        after: int | None,
        context: PromptContext,
        start: str = "",
        files: Sequence[Document] = (),
    ) -> int:
        """Say `text` with `files` after the message that was seen last.

        Gives the answer's message, which begins with `start`.
        """
        messages = self._store.read(chat).messages
        if after != (messages[-1].id if messages else None):
            raise ChatStoreError("chat_moved_on")
        prompt = context.prepare([*context.turns_of(messages), context.asked(text, files)], start=start)

        def begin() -> int:
            question = self._store.append_user(chat, text, after, files, context.character.person_name)
            parts = context.style.message_parts("", prompt.parts, prompt.begun) if start else Parts()
            return self._store.begin_answer(chat, question, parts.answer, context.speaker, thought_of(parts))

        return self._begin(chat, prompt, context, begin)

    def reply(self, chat: int, after: int | None, context: PromptContext) -> int:
        """Answer the last message, or let another character of a group speak after it."""
        prompt = context.prepare(context.turns_of(self._store.read(chat).messages))
        return self._begin(
            chat, prompt, context, lambda: self._store.begin_answer(chat, after, speaker=context.speaker)
        )

    def regenerate(self, chat: int, message: int, context: PromptContext) -> int:
        """Answer anew; the old answer stays as a version."""
        before, _ = self._split(chat, message)
        prompt = context.prepare(context.turns_of(before))
        return self._begin(chat, prompt, context, lambda: self._store.begin_version(message))

    def edit_and_resend(self, chat: int, message: int, text: str, context: PromptContext) -> int:
        """Ask something else in a question's place, with its files and speaker; the old one stays as a version."""
        before, old = self._split(chat, message)
        prompt = context.prepare(context.turns_of([*before, replace(old, text=text, is_hidden=False)]))

        def begin() -> int:
            question = self._store.add_version(message, text)
            return self._store.begin_answer(chat, question, speaker=context.speaker)

        return self._begin(chat, prompt, context, begin)

    def continue_answer(self, chat: int, message: int, context: PromptContext) -> int:
        """Let the last answer go on where it ended."""
        before, last = self._split(chat, message)
        if (variables := variables_of(last.stats)) is not None:
            context = replace(context, thinking=replace(context.thinking, variables=variables))
        prompt = context.prepare(context.turns_of(before), start=context.style.whole_of(last))

        def begin() -> int:
            self._store.reopen_answer(message)
            return message

        before_s = last.thought.seconds or 0.0 if last.thought is not None else 0.0
        return self._begin(chat, prompt, context, begin, before_s)

    def continue_notebook(self, chat: int, text: str, context: PromptContext) -> int:
        """Let a notebook's `text` go on, as a new version: the one before it can be brought back."""
        messages = self._store.read(chat).messages
        prompt = context.prepare_text(text)

        def begin() -> int:
            page = messages[-1].id if messages else self._store.append_text(chat, text)
            return self._store.begin_version(page, text)

        return self._begin(chat, prompt, context, begin)

    def impersonate(self, chat: int, context: PromptContext) -> ImpersonationDraft:
        """Begin to write what the person might say next."""
        prompt = context.prepare(context.turns_of(self._store.read(chat).messages), voice="user")
        style, parts = context.style, prompt.parts
        with self._alone(chat):
            draft = ImpersonationDraft(self._ask(prompt, context), lambda text: style.clean_answer(text, parts))
            with self._lock:
                self._impersonations[chat] = draft
            return draft

    def impersonation(self, chat: int) -> ImpersonationDraft | None:
        return self._impersonations.get(chat)

    def take_impersonation(self, chat: int) -> str | None:
        """What the model wrote for the person, once it is finished; only one tab gets it."""
        with self._lock:
            draft = self._impersonations.get(chat)
            if draft is None or draft.answer.is_running:
                return None
            del self._impersonations[chat]
        return draft.text

    def writing(self, chat: int) -> int | None:
        """The message that is being written in a chat by this process, until it is on the disk to its end."""
        message = self._writing.get(chat)
        return message if message is not None and self._recorder.answer(message) is not None else None

    def is_busy(self, chat: int) -> bool:
        draft = self._impersonations.get(chat)
        return self.writing(chat) is not None or (draft is not None and draft.answer.is_running)

    def busy_chats(self) -> list[int]:
        """The chats in which this process is writing something, whoever's they are."""
        with self._lock:
            chats = {*self._writing, *self._impersonations}
        return sorted(chat for chat in chats if self.is_busy(chat))

    def stop(self, chat: int) -> None:
        """End whatever is being written in a chat, and keep it."""
        if (message := self.writing(chat)) is not None:
            self._recorder.stop(message)
        if (draft := self._impersonations.get(chat)) is not None:
            draft.answer.cancel()

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
        for index, one in enumerate(messages):
            if one.id == message:
                return messages[:index], one
        raise ChatStoreError("message_changed")

    def _ask(self, prompt: Prompt, context: PromptContext) -> Answer:
        parts = prompt.parts
        stop = context.style.stop_strings(parts.voice, context.sampling.stop, parts.history)
        continues = bool(parts.start.strip()) or (context.mode == "notebook" and bool(parts.history))
        thought = context.style.engine_rules(parts, prompt.begun, context.thinking.budget_tokens)
        return self._engine.generate(
            prompt.fitted.prompt,
            replace(context.sampling, stop=stop),
            continues=continues,
            thought=thought,
            options=RequestOptions(adapter=context.adapter),
        )

    def _begin(
        self,
        chat: int,
        prompt: Prompt,
        context: PromptContext,
        begin: Callable[[], int],
        thought_s: float = 0.0,
    ) -> int:
        style, parts = context.style, prompt.parts
        with self._alone(chat):
            answer = self._ask(prompt, context)
            try:
                message = begin()
                self._recorder.follow(
                    message,
                    answer,
                    context.model.name,
                    lambda text, is_done: style.message_parts(text, parts, prompt.begun, is_done),
                    thought_s,
                    context.thinking.variables if context.model.template.switches else None,
                )
            except BaseException:  # Whatever it is: nobody would follow the answer.
                answer.cancel()
                raise
            with self._lock:
                self._writing[chat] = message
        return message
