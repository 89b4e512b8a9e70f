"""The first words of a finished model, by the engine in a process of its own, as a load has it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from core.checkpoint.checkpoint import read_checkpoint
from core.common.errors import DeckError, EngineError
from core.common.values import printable
from core.engine.runner import Runner
from core.engine.sampling_params import Sampling

# What it is asked, and what it is to go on with where it has no template of chats.
QUESTION, BEGINNING = "What is the capital of France? Answer in one sentence.", "The capital of France is"
CONTEXT_TOKENS, NEW_TOKENS = 512, 32
ANSWER_S = 300.0


@dataclass(frozen=True, slots=True)
class FirstWords:
    """What a model said when it was asked. `error`: why there are none. Where the engine
    could not be tried at all, such as beside a model that is loaded, `was_tried` is False."""

    text: str = ""
    error: DeckError | None = None
    was_tried: bool = True


def answer_words(asked: str, found: FirstWords, language: str) -> tuple[str, dict[str, str]]:
    """What to show of it, in `language`: the key of a sentence under "quantize", and what it quotes."""
    if found.error is None:
        return "answer", {"question": asked, "answer": " ".join(found.text.split())}
    return "answer_bad" if found.was_tried else "answer_untried", {"reason": found.error.sentence(language)}


class Check(Protocol):
    """Asks a model once."""

    def ask(self, folder: Path, name: str, prompt: str, on_cpu: bool) -> FirstWords: ...

    def stop(self) -> None:
        """End it, from any thread: `ask` returns soon after."""


class EngineCheck:
    def __init__(self) -> None:
        self._runner = Runner()
        self._stopped = threading.Event()

    def ask(self, folder: Path, name: str, prompt: str, on_cpu: bool) -> FirstWords:
        """The answer of the model in `folder`, which will be called `name`, to `prompt`."""
        try:
            return self._ask(folder, prompt, on_cpu)
        except DeckError as error:
            params = {key: name if key == "model" else value for key, value in error.params.items()}
            # A model whose numbers are none was tried; all else tells of this machine at this moment.
            return FirstWords(error=type(error)(error.key, **params), was_tried=error.key in ("not_finite", "no_words"))
        finally:
            self._runner.close()

    def stop(self) -> None:
        self._stopped.set()
        self._runner.close()

    def _ask(self, folder: Path, prompt: str, on_cpu: bool) -> FirstWords:
        longest = read_checkpoint(folder).max_context_tokens
        self._runner.load(folder, min(CONTEXT_TOKENS, longest), on_cpu=on_cpu)
        if self._stopped.is_set():
            self._runner.close()
        state = self._runner.wait_while_loading()
        if state.phase != "ready":
            raise state.error or EngineError("nothing_loaded")
        answer = self._runner.generate(prompt, Sampling(temperature=0.0, max_new_tokens=NEW_TOKENS))
        # Of a model that writes slowly, what is there by then.
        answer.wait(ANSWER_S)
        if answer.error is not None:
            raise answer.error
        if not (text := printable(answer.text.strip())):
            raise EngineError("no_words", model=folder.name)
        return FirstWords(text)
