"""What pages, chats and the API ask of any engine: this machine's own, one on another server, or the one in use."""

from __future__ import annotations

from typing import Protocol

from core.engine.answer import Answer
from core.engine.protocol import EngineState
from core.engine.request_options import PLAIN, RequestOptions
from core.engine.sampling_params import Sampling
from core.engine.thought import ThoughtRules


class PromptCounter(Protocol):
    """Counts tokens for a model whose tokenizer another server has."""

    def count(self, text: str) -> int:
        """The tokens of a piece of a prompt, estimated."""
        ...

    def count_prompt(self, prompt: str | tuple[int, ...]) -> int:
        """The tokens of a whole prompt. May wait for the server."""
        ...


class Engine(Protocol):
    """Answers prompts with one model at a time. Every member may be used from any thread."""

    @property
    def state(self) -> EngineState:
        """What the engine is doing, as pages show it. Waits for nothing."""
        ...

    @property
    def running_answers(self) -> list[Answer]:
        """The answers that are queued or being written, oldest first."""
        ...

    @property
    def silent_s(self) -> float:
        """For how long an engine that should answer has given no sign of life; 0 while it does."""
        ...

    @property
    def server_counter(self) -> PromptCounter | None:
        """Counts for a model on another server; None where this machine has the model and its tokenizer."""
        ...

    def generate(
        self,
        prompt: str | tuple[int, ...],
        sampling: Sampling,
        continues: bool = False,
        client: str = "",
        thought: ThoughtRules | None = None,
        options: RequestOptions = PLAIN,
    ) -> Answer:
        """Begin to answer `prompt`. Where the model is busy, the answer waits its turn.

        `prompt` is a text with its special tokens written out, token ids, or a Conversation for another server.
        `continues`: the prompt ends inside the answer, and the text goes on after its last word. A Conversation says
        that itself. `client` is for whom it is: "" for the pages, which go first, else a client of the API. `thought`
        says how the answer's thought is marked, None where nobody asks: see Generate. A server's thoughts come between
        the marks of THINK. `options` are what this answer alone is asked for; what a server does not take is refused.
        Raises EngineError where no model can answer or no more prompts can wait.
        """
        ...

    def wait_while_loading(self, timeout_s: float | None = None) -> EngineState:
        """Wait for the end of a load or of connecting, at most `timeout_s`; the state as it then is."""
        ...
