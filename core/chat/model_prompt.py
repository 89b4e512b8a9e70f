"""Who reads a prompt: the template and the counter of the model that answers, here or elsewhere; knows no page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from core.chat.template import ChatTemplate, Turn, read_template
from core.chat.tokens import read_counter
from core.engine.interface import Engine
from core.engine.protocol import Conversation


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
    """Counts as another server does: only whole prompts can be exact, and the server opens a plain text itself."""

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
    """Leaves it to the server to put turns into its model's template."""

    def render(self, turns: list[Turn]) -> str:
        return Conversation([(turn["role"], turn["content"]) for turn in turns], is_open=False)

    def render_open(self, turns: list[Turn]) -> tuple[str, str]:
        return Conversation([(turn["role"], turn["content"]) for turn in turns], is_open=True), ""


@dataclass(frozen=True, slots=True)
class Reader:
    """`count_prompt` counts a whole prompt, `counter` its pieces. `folder` is None for a model on another server."""

    model: str
    folder: Path | None
    template: ChatTemplate
    counter: Counter
    count_prompt: Callable[[str], int]


def read_reader(engine: Engine, template_of: Callable[[Path], ChatTemplate] = read_template) -> Reader | None:
    """None where no model can answer now. Raises DeckError for a tokenizer or template that cannot be read."""
    state = engine.state
    if state.phase != "ready" or state.model is None or state.facts is None:
        return None
    if state.facts.remote is not None:
        if (remote := engine.server_counter) is None:
            return None
        counter = RemoteCounter(remote.count, state.facts.remote.counts_tokens)
        # A template that is there and empty: the model was taught to chat.
        return Reader(state.model, None, ConversationTemplate("", "", ""), counter, remote.count_prompt)
    if state.folder is None:
        return None
    local = read_counter(state.folder)
    return Reader(state.model, state.folder, template_of(state.folder), local, local.count)
