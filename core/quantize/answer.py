"""The first words of a finished model, by the engine in a process of its own, as a load has it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from core.checkpoint.checkpoint import read_checkpoint
from core.common.errors import DeckError, EngineError
from core.common.i18n import translate
from core.common.values import printable
from core.engine.runner import Runner
from core.engine.sampling_params import Sampling
from core.quantize.card import loss_percent
from core.quantize.options import BITS, GROUP_SIZES, QuantizeOptions

# What it is asked, and what it is to go on with where it has no template of chats.
QUESTION, BEGINNING = "What is the capital of France? Answer in one sentence.", "The capital of France is"
# In percent: a model that lost less has hardly changed.
LARGE_LOSS = 10.0
CONTEXT_TOKENS, NEW_TOKENS = 512, 32
ANSWER_S = 300.0


@dataclass(frozen=True, slots=True)
class FirstWords:
    """What a model said when it was asked. `error`: why there are none. Where the engine
    could not be tried at all, such as beside a model that is loaded, `was_tried` is False."""

    text: str = ""
    error: DeckError | None = None
    was_tried: bool = True


def answer_words(result: Mapping[str, Any], options: QuantizeOptions, language: str) -> tuple[str, dict[str, str]]:
    """What to show of it, in `language`: the key of a sentence under "quantize", and what it quotes.

    `result`: what the child process found, with the "first_words".
    """
    found: FirstWords = result["first_words"]
    if found.error is None:
        return "answer", {"question": result["asked"], "answer": " ".join(found.text.split())}
    reason = found.error.sentence(language)
    if not found.was_tried:
        return "answer_untried", {"reason": reason}
    if found.error.key == "not_finite":
        return "answer_no_numbers", {}
    return "answer_bad", {"reason": reason, "advice": translate(language, f"quantize.{_advice(result, options)}")}


def _advice(result: Mapping[str, Any], options: QuantizeOptions) -> str:
    """What may help a model that answers nothing: finer numbers only where rougher ones may be why."""
    loss = loss_percent(result)
    if loss is not None and loss < LARGE_LOSS:
        return "advice_original"
    has_finer_groups = options.group_size != min(size for size in GROUP_SIZES if size > 0)
    if options.bits == max(BITS):
        return "advice_groups" if has_finer_groups else "advice_finest"
    return "advice_bits_or_groups" if has_finer_groups else "advice_bits"


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
