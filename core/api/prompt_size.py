"""Refuses prompts that are too long, before a template or a tokenizer works on all of them."""

from __future__ import annotations

from collections.abc import Sequence

from core.api.errors import ApiError
from core.api.served_model import ServedModel

# Texts of more than FAR_CONTEXTS contexts are refused before a template or a tokenizer works on all of them. Those of
# FEW_CHARS cost little and are never refused so early. Longer ones are counted in pieces of PIECE_CHARS.
FAR_CONTEXTS = 4
FEW_CHARS = 2**16
PIECE_CHARS = 2**15


def check_size(texts: Sequence[str], served: ServedModel) -> None:
    """Raise ApiError where texts are far longer than the context, without work on all of them.

    Texts that are only somewhat too long pass: some templates leave out parts of messages.
    """
    if sum(map(len, texts)) <= FEW_CHARS:
        return
    num_tokens = 0
    for text in texts:
        for begin in range(0, len(text), PIECE_CHARS):
            num_tokens += served.model.counter.count(text[begin : begin + PIECE_CHARS])
            if num_tokens > FAR_CONTEXTS * served.context_tokens:
                raise ApiError("api_far_too_long", limit=served.context_tokens)


def check_length(prompt: str | tuple[int, ...], served: ServedModel, num_answer: int = 1) -> int:
    """How many tokens the prompt has. Raises ApiError where it leaves no room for the first `num_answer` tokens of an
    answer. An estimate passes: the engine counts itself."""
    is_exact = served.model.counter.is_exact or not isinstance(prompt, str)
    tokens = served.model.count_prompt(prompt) if isinstance(prompt, str) else len(prompt)
    if tokens + num_answer > served.context_tokens and is_exact:
        raise ApiError("api_too_long", tokens=tokens, limit=served.context_tokens)
    return tokens
