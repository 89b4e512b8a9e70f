"""A ChatService with its history, and an engine that only notes what it was asked and answers when told to."""

from __future__ import annotations

from pathlib import Path

from core.chat.character_prompt import CharacterPrompt
from core.chat.model_prompt import ModelPrompt, RemoteCounter
from core.chat.prompt_context import PromptContext
from core.chat.recorder import Recorder
from core.chat.records import Mode
from core.chat.service import ChatService
from core.chat.store import ChatStore
from core.chat.template import ChatTemplate
from core.common.errors import EngineError
from core.engine.answer import Answer
from core.engine.protocol import AnswerStats, Finished, TextChunk
from core.engine.request_options import PLAIN, RequestOptions
from core.engine.sampling_params import Sampling
from core.engine.thought import ThoughtRules
from core.personas.character import Character
from core.personas.user import UserPersona

TEMPLATE = ChatTemplate(
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
    "",
    "",
)
# Her lore answers to messages of the memory tests, and is left out where the context is full.
LORE = {"entries": [{"keys": ["xxx"], "content": "@@ignore_on_max_context\nroomy", "enabled": True}]}
ADA = Character("Ada", context="system", lorebook=LORE)
WAIT_S = 60.0


class Engine:
    """Notes every prompt; answers when told to."""

    def __init__(self) -> None:
        self.prompts: list[tuple[str, bool]] = []
        self.answers: list[Answer] = []
        self.thoughts: list[ThoughtRules | None] = []
        self.cancelled: list[int] = []
        self.is_loaded = True

    def generate(
        self,
        prompt: str,
        sampling: Sampling,
        continues: bool = False,
        thought: ThoughtRules | None = None,
        options: RequestOptions = PLAIN,
    ) -> Answer:
        if not self.is_loaded:
            raise EngineError("nothing_loaded")
        self.prompts.append((prompt, continues))
        self.thoughts.append(thought)
        self.answers.append(Answer(len(self.answers), self._cancel))
        return self.answers[-1]

    def _cancel(self, request: int) -> None:
        self.cancelled.append(request)
        self.answers[request].apply(Finished(request, "cancelled", AnswerStats(1, 0, 1, 0, 0, 0, 1)))

    def say(self, text: str) -> None:
        answer = self.answers[-1]
        answer.apply(TextChunk(answer.request, text, 1))
        answer.apply(Finished(answer.request, "end", AnswerStats(1, 0, 1, 0, 0, 0, 1)))


class Desk:
    """A ChatService with its history and engine, and one chat."""

    def __init__(self, path: Path) -> None:
        self.store = ChatStore(path)
        self.recorder = Recorder(self.store)
        self.engine = Engine()
        self.service = ChatService(self.store, self.recorder, self.engine)
        self.chat = self.store.create("instruct")

    def send(self, text: str, answer: str, start: str = "") -> int:
        message = self.service.send(self.chat, text, self.last(), context(), start)
        return self.finish(message, answer)

    def finish(self, message: int, answer: str) -> int:
        self.engine.say(answer)
        assert self.recorder.wait(message, WAIT_S)
        return message

    def last(self) -> int | None:
        messages = self.store.read(self.chat).messages
        return messages[-1].id if messages else None

    def texts(self) -> list[str]:
        return [one.text for one in self.store.read(self.chat).messages]


def context(mode: Mode = "instruct", context_tokens: int = 4096, longest: int = 64) -> PromptContext:
    """One token a character."""
    model = ModelPrompt("model", None, TEMPLATE, RemoteCounter(len, is_exact=True), len)
    speaker = CharacterPrompt(ADA, UserPersona())
    return PromptContext(model, context_tokens, mode, speaker, Sampling(max_new_tokens=longest))
