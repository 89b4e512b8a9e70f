"""How the model that answers, on this machine or another server, reads a prompt: its template and token counter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from core.chat.template import TEMPLATES, ChatTemplate, read_template
from core.chat.template_messages import Turn
from core.chat.thinking import EFFORT, SWITCHES
from core.chat.tokens import read_counter
from core.common.files import Versions, file_versions
from core.common.paths import data_dir
from core.common.preferences import Preferences
from core.engine.interface import PromptCounter
from core.engine.protocol import Conversation, EngineState
from core.engine.thought_formats import THINK
from core.tokenizer.read import FILES

# Where preferences keep the formats of models that have no chat template.
FORMAT_GROUP = "chat_format"


class Counter(Protocol):
    """Counts the tokens of a text; see core/chat/tokens.py."""

    @property
    def is_exact(self) -> bool: ...

    @property
    def opening(self) -> str: ...

    def count(self, text: str) -> int: ...

    def encode(self, text: str) -> list[int] | None: ...

    def decode(self, tokens: Sequence[int]) -> str | None: ...


@dataclass(frozen=True, slots=True)
class RemoteCounter:
    """Counts as another server does. Only whole prompts can be exact, and the server opens a plain text itself."""

    count: Callable[[str], int]
    is_exact: bool
    opening: str = ""

    def encode(self, text: str) -> list[int] | None:
        """The tokenizer is the server's."""
        return None

    def decode(self, tokens: Sequence[int]) -> str | None:
        return None


@dataclass(frozen=True, slots=True)
class ConversationTemplate(ChatTemplate):
    """Leaves it to the server to put turns into its model's template.

    Which switches that has, only the server knows.
    """

    takes_variables: bool = False

    @property
    def switches(self) -> frozenset[str]:
        return frozenset((EFFORT, *(SWITCHES[:1] if self.takes_variables else ())))

    def render(self, turns: list[Turn]) -> str:
        return self._conversation(turns, is_open=False)

    def render_open(self, turns: list[Turn]) -> tuple[str, str]:
        return self._conversation(turns, is_open=True), ""

    def _conversation(self, turns: list[Turn], is_open: bool) -> Conversation:
        return Conversation(
            [(turn["role"], turn["content"]) for turn in turns],
            is_open,
            [turn.get("thought", "").strip() for turn in turns],
            self.variables,
        )

    def render_begun(self, turns: list[Turn], start: str) -> str:
        return self.render_open([*turns, Turn(role="assistant", content=start)])[0]


@dataclass(frozen=True, slots=True)
class ModelPrompt:
    """How prompts are written for one model, and counted.

    `count_prompt` counts a whole prompt, `counter` its parts. `folder` is None for a model on another server.
    """

    name: str
    folder: Path | None
    template: ChatTemplate
    counter: Counter
    count_prompt: Callable[[str], int]


def read_model_prompt(state: EngineState, server_counter: PromptCounter | None) -> ModelPrompt | None:
    """How the model of an engine in `state` reads prompts; None where none can answer.

    Raises DeckError for a tokenizer or template that cannot be read.
    """
    if state.phase != "ready" or state.model is None or state.facts is None:
        return None
    if state.facts.remote is not None:
        if server_counter is None:
            return None
        counter = RemoteCounter(server_counter.count, state.facts.remote.counts_tokens)
        # The template is there and empty: the model was taught to chat.
        return ModelPrompt(
            state.model,
            None,
            ConversationTemplate("", "", "", thought_format=THINK, takes_variables=state.facts.remote.takes_variables),
            counter,
            server_counter.count_prompt,
        )
    if state.folder is None:
        return None
    local = read_counter(state.folder)
    return ModelPrompt(state.model, state.folder, template_of(state.folder), local, local.count)


def chosen_format(model: str) -> str:
    """The format that was chosen on this installation for a model without a template; empty for none."""
    return _preferences(data_dir()).get(FORMAT_GROUP, model) or ""


def choose_format(model: str, name: str) -> None:
    _preferences(data_dir()).set(FORMAT_GROUP, model, name)


@lru_cache(4)
def _preferences(folder: Path) -> Preferences:
    return Preferences(folder / "settings.json")


def template_of(folder: Path) -> ChatTemplate:
    """How the model in `folder` is asked, with what was chosen for it. Raises DeckError."""
    versions = file_versions(folder, (*TEMPLATES, *FILES))
    # The folder of a loaded model may be taken away; the model goes on answering.
    return _read_template(folder, versions, chosen_format(folder.name)) if versions else ChatTemplate(None, "", "")


@lru_cache(8)
def _read_template(folder: Path, versions: Versions, chosen: str) -> ChatTemplate:
    return read_template(folder, chosen)
