"""Prompts of an exact number of tokens, no two with the same beginning, that ask for a long answer."""

from __future__ import annotations

import itertools

from tokenizers import Tokenizer

from core.chat.template import read_template
from core.checkpoint.checkpoint import Checkpoint
from core.common.paths import ROOT
from core.memory.model_shape import read_shape

QUESTION = "Tell me a very long story about a fox who travels around the world and writes a diary."
FILLER = ROOT / "core" / "starter" / "starter_texts.txt"
# Tokens of a model without a readable tokenizer: any, but none of the first, which have special meanings.
FIRST_TOKEN, LAST_TOKEN = 5, 500
# How far one prompt's beginning lies from the last one's in the filler.
STRIDE = 7


class Prompts:
    """Gives one prompt after another for the model in `checkpoint`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        vocabulary = read_shape(checkpoint).vocabulary
        path = checkpoint.folder / "tokenizer.json"
        self._filler = list(range(FIRST_TOKEN, min(vocabulary, LAST_TOKEN)))
        self._question: list[int] = []
        if path.is_file():
            tokenizer = Tokenizer.from_file(str(path))
            template = read_template(checkpoint.folder)
            # A model whose format is not known gets the bare words.
            question = QUESTION if template.source is None else template.render([{"role": "user", "content": QUESTION}])
            self._filler = encode(tokenizer, FILLER.read_text("utf-8").replace("%%", ""), vocabulary)
            self._question = encode(tokenizer, question, vocabulary)
        self._beginnings = sorted(set(self._filler))
        self._numbers = itertools.count()

    def take(self, num_tokens: int) -> tuple[int, ...]:
        """The next prompt: something else to begin with, so that nothing of an earlier one is reused; the question last
        as far as there is room."""
        number = next(self._numbers)
        begin = number * STRIDE % len(self._filler)
        question = self._question[-(num_tokens - 1) :] if num_tokens > 1 else []
        filler = itertools.islice(itertools.cycle(self._filler), begin, begin + num_tokens - 1 - len(question))
        return (self._beginnings[number % len(self._beginnings)], *filler, *question)


def encode(tokenizer: Tokenizer, text: str, vocabulary: int) -> list[int]:
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return [token for token in tokens if token < vocabulary]
