"""Log-probabilities as OpenAI writes them, of chats and of completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.engine.protocol import TokenChance, TokenInfo


def chat_logprobs(tokens: Sequence[TokenInfo]) -> dict[str, Any]:
    """One entry for each token of the text; the end that is no text has none."""
    content = [
        _entry(one.chosen) | {"top_logprobs": [_entry(chance) for chance in one.top]}
        for one in tokens
        if not one.is_end
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[TokenInfo], begin: int = 0) -> dict[str, Any]:
    """Lists of one length, the token that ended the text among them. `begin`: the first one's place in the text."""
    texts = [_text(one.chosen) for one in tokens]
    offsets: list[int] = []
    for text in texts:
        offsets.append(begin)
        begin += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [one.chosen.logprob for one in tokens],
        # The token itself is always among them: clients look there whether it was the likeliest.
        "top_logprobs": [_top(one) for one in tokens],
        "text_offset": offsets,
    }


def length_of(tokens: Sequence[TokenInfo]) -> int:
    """How many characters of a completion they are."""
    return sum(len(_text(one.chosen)) for one in tokens)


def _top(one: TokenInfo) -> dict[str, float] | None:
    if one.chosen.logprob is None:
        return None
    # Of two tokens that say the same, such as two broken bytes, the likelier counts.
    top: dict[str, float] = {}
    for chance in (*one.top, one.chosen):
        if chance.logprob is not None:
            top.setdefault(_text(chance), chance.logprob)
    return top


def _entry(chance: TokenChance) -> dict[str, Any]:
    return {"token": _text(chance), "logprob": chance.logprob, "bytes": list(chance.data)}


def _text(chance: TokenChance) -> str:
    """What a token says; one that is a part of a character as vLLM has it, with the mark of what cannot be shown."""
    return chance.data.decode("utf-8", "replace")
