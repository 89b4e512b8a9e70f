"""Fits a chat into the model's context by leaving out whole examples, then whole messages from the oldest on.

The system text, which describes the character, and the last message always stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from core.chat.template_messages import Turn
from core.common.errors import DeckError
from core.personas.lorebook import LeftOut, Lore

# Who speaks next.
Voice = Literal["assistant", "user"]
# At most this share of the context is kept free for the answer: a generous limit must not push out the chat.
MAX_ANSWER_SHARE = 0.5
# Of an answer that goes on at least this share of the context is kept free, where leaving out messages can give it.
LEAST_ANSWER_SHARE = 1 / 16
# From this many messages the tokens are measured that a template puts around each turn.
PROBE_MESSAGES = 8


class ContextError(DeckError):
    """What has to be in the prompt does not fit into the model's context."""


@dataclass(frozen=True, slots=True)
class PromptParts:
    """What a prompt is made of.

    `examples` are whole exchanges, `after_examples` is told after them. `after` is an instruction to the assistant that
    follows the history. `voice` speaks next and begins with `start`, which holds all words of an answer that is
    continued.
    """

    history: tuple[Turn, ...]
    system: str = ""
    examples: tuple[tuple[Turn, ...], ...] = ()
    after_examples: str = ""
    after: str = ""
    voice: Voice = "assistant"
    start: str = ""


@dataclass(frozen=True, slots=True)
class ComposedPrompt:
    """A prompt before it is fitted. `message_indexes` says for each turn of the history which message it is.

    None stands for a turn that is no message, such as lore. `lore` is all lore in it, which `lore_tokens` counts,
    `left_out` is what the chat called up beyond that.
    """

    parts: PromptParts
    message_indexes: tuple[int | None, ...]
    lore_tokens: int = 0
    left_out: tuple[LeftOut, ...] = ()
    lore: tuple[Lore, ...] = ()


@dataclass(frozen=True, slots=True)
class FittedPrompt:
    """A prompt that fits into the context.

    `first_kept` is the index of the oldest message of the history in it. `history_tokens` counts the kept messages'
    own words, `room_tokens` what is left for an answer.
    """

    prompt: str
    prompt_tokens: int
    history_tokens: int
    room_tokens: int
    first_kept: int
    num_examples: int


def join_texts(*texts: str) -> str:
    """PromptParts of a system text, as paragraphs: the lore before, the character, the lore after."""
    return "\n\n".join(text.strip() for text in texts if text.strip())


def room_for_prompt(context_tokens: int, answer_tokens: int) -> int:
    """The most tokens of a prompt that leaves room for an answer of `answer_tokens`, at most half of the context."""
    return context_tokens - min(answer_tokens, int(context_tokens * MAX_ANSWER_SHARE))


def fit_to_context(
    parts: PromptParts,
    render: Callable[[PromptParts], str],
    count_tokens: Callable[[str], int],
    context_tokens: int,
    answer_tokens: int,
    count_prompt: Callable[[str], int] | None = None,
    num_last: int = 1,
) -> FittedPrompt:
    """The longest prompt that leaves room for an answer of `answer_tokens`, at most half of the context.

    What the answer has begun with counts as its own: one that goes on takes what room there is, though it be a token.
    The last `num_last` turns always stay: the last message, and lore that comes after it. `count_prompt` counts a whole
    prompt exactly where `count_tokens` only estimates a part.
    Raises ContextError "message_too_long" or "character_too_long" where the parts that must stay are too long.
    """
    count_prompt = count_prompt or count_tokens
    begun_tokens = count_tokens(parts.start) if parts.start else 0
    limit = _limit(context_tokens, answer_tokens, begun_tokens)
    costs = _last_costs(parts.history, count_tokens, limit, num_last)
    # Those before it are too old: the messages after them are too long already.
    oldest = len(parts.history) - len(costs)
    measured: dict[tuple[int, int], tuple[str, int]] = {}

    def measure(first: int, num_examples: int) -> tuple[str, int]:
        key = (first, num_examples)
        if key not in measured:
            kept = replace(parts, history=parts.history[first:], examples=parts.examples[:num_examples])
            prompt = render(kept)
            measured[key] = prompt, count_prompt(prompt)
        return measured[key]

    last = max(0, len(parts.history) - num_last)
    least = measure(last, 0)[1]
    if begun_tokens:
        limit = max(limit, min(least, context_tokens - 1))
    if least > limit:
        raise _too_long(sum(costs[last - oldest :]) + begun_tokens, least, limit)
    probe = max(oldest, last - PROBE_MESSAGES)
    marks = (measure(probe, 0)[1] - least - sum(costs[probe - oldest : last - oldest])) / max(1, last - probe)
    guess = oldest + _guess_first([cost + marks for cost in costs[: last - oldest]], limit - least)
    first = find_first(guess, last, lambda index: measure(index, 0)[1] <= limit)
    num_examples = 0
    if first == 0:
        while num_examples < len(parts.examples) and measure(0, num_examples + 1)[1] <= limit:
            num_examples += 1
    prompt, tokens = measure(first, num_examples)
    history_tokens = sum(count_tokens(turn["content"]) for turn in parts.history[first:])
    return FittedPrompt(prompt, tokens, history_tokens, context_tokens - tokens, first, num_examples)


def _limit(context_tokens: int, answer_tokens: int, begun_tokens: int) -> int:
    """The most tokens of a prompt that holds the first `begun_tokens` of the answer."""
    limit = room_for_prompt(context_tokens, answer_tokens)
    least = min(answer_tokens, int(context_tokens * LEAST_ANSWER_SHARE))
    return max(limit, min(limit + begun_tokens, context_tokens - least))


def _last_costs(history: Sequence[Turn], count_tokens: Callable[[str], int], limit: int, num_last: int) -> list[int]:
    """The tokens of the last messages, oldest first: of at least `num_last`, and of as many as may fit into `limit`.

    The others are never counted: of a chat of years they are thousands, and this is done several times an answer.
    """
    costs: list[int] = []
    total = 0
    for turn in reversed(history):
        if total > limit and len(costs) >= num_last:
            break
        costs.append(count_tokens(turn["content"]))
        total += costs[-1]
    return costs[::-1]


def find_first(guess: int, last: int, fits: Callable[[int], bool]) -> int:
    """The first index from 0 to `last` that `fits`, by few trials near `guess`. All after it fit, and `last` does."""
    step = 1
    if fits(guess):
        low, high = guess - step, guess
        while low >= 0 and fits(low):
            step *= 2
            low, high = max(-1, low - step) if low else -1, low
    else:
        low, high = guess, min(last, guess + step)
        while not fits(high):
            step *= 2
            low, high = high, min(last, high + step)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _guess_first(costs: list[float], budget: int) -> int:
    """The index of the first message that fits beside those that stay, by the messages' own tokens."""
    sums = accumulate(reversed(costs))
    return len(costs) - sum(1 for total in sums if total <= budget)


def _too_long(message: int, tokens: int, limit: int) -> ContextError:
    """The error that names the longer part, the last message or the character's text, and what the other one leaves."""
    rest = tokens - message
    if rest > message:
        return ContextError("character_too_long", tokens=rest, limit=max(0, limit - message))
    return ContextError("message_too_long", tokens=message, limit=max(0, limit - rest))
