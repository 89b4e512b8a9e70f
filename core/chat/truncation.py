"""What of a chat the model gets to read: all that fits, and never half a message.

What does not fit goes as a whole: examples first, then messages from the oldest on. The system text, with the
character in it, and the last message always stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from core.chat.template import Turn
from core.common.errors import DeckError

# The answer's room is kept free up to this share of the context: a generous limit must not push out the chat.
MAX_ANSWER_SHARE = 0.5
# So many messages show what a turn's marks cost in a template.
PROBE_MESSAGES = 8


class ContextError(DeckError):
    """What has to be in the prompt does not fit into the model's context."""


@dataclass(frozen=True, slots=True)
class PromptParts:
    """What a prompt is made of. `examples` are whole exchanges; `after` is told to the
    assistant, after the history.

    `voice` is who speaks next, and `start` what that begins with: the words of an answer that is continued, too.
    """

    history: tuple[Turn, ...]
    system: str = ""
    examples: tuple[tuple[Turn, ...], ...] = ()
    after: str = ""
    voice: Literal["assistant", "user"] = "assistant"
    start: str = ""


@dataclass(frozen=True, slots=True)
class ComposedPrompt:
    """A prompt before it is fitted. `message_indexes` says for each turn of the history which message it is.

    None stands for a turn that is no message, such as lore.
    """

    parts: PromptParts
    message_indexes: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class FittedPrompt:
    """A prompt that fits. `first_kept` is the index of the oldest message of the history that is in it.

    `history_tokens` is what the kept messages' own words count; `room_tokens` is what an answer may take.
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


def fit_to_context(
    parts: PromptParts,
    render: Callable[[PromptParts], str],
    count_tokens: Callable[[str], int],
    context_tokens: int,
    answer_tokens: int,
    count_prompt: Callable[[str], int] | None = None,
) -> FittedPrompt:
    """The longest prompt that leaves room for an answer of `answer_tokens`, at most half of the context.

    `count_prompt` counts whole prompts where parts are only estimated.
    Raises ContextError "message_too_long" or "character_too_long" where what must stay is too much already.
    """
    count_prompt = count_prompt or count_tokens
    limit = context_tokens - min(answer_tokens, int(context_tokens * MAX_ANSWER_SHARE))
    costs = [count_tokens(turn["content"]) for turn in parts.history]
    measured: dict[tuple[int, int], tuple[str, int]] = {}

    def measure(first: int, num_examples: int) -> tuple[str, int]:
        place = (first, num_examples)
        if place not in measured:
            kept = replace(parts, history=parts.history[first:], examples=parts.examples[:num_examples])
            prompt = render(kept)
            measured[place] = prompt, count_prompt(prompt)
        return measured[place]

    last = max(0, len(costs) - 1)
    least = measure(last, 0)[1]
    if least > limit:
        raise _too_long(parts, count_tokens, least, limit)
    probe = max(0, last - PROBE_MESSAGES)
    marks = (measure(probe, 0)[1] - least - sum(costs[probe:last])) / max(1, last - probe)
    guess = _guess_first([cost + marks for cost in costs], limit - least)
    first = find_first(guess, last, lambda index: measure(index, 0)[1] <= limit)
    num_examples = 0
    if first == 0:
        while num_examples < len(parts.examples) and measure(0, num_examples + 1)[1] <= limit:
            num_examples += 1
    prompt, tokens = measure(first, num_examples)
    return FittedPrompt(prompt, tokens, sum(costs[first:]), context_tokens - tokens, first, num_examples)


def find_first(guess: int, last: int, fits: Callable[[int], bool]) -> int:
    """The first index from 0 to `last` that `fits`, where all after it do; `last` does. Few trials near `guess`."""
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
    """The first message that fits beside the last one, by the messages' own counts."""
    sums = accumulate(reversed(costs[:-1]))
    return max(0, len(costs) - 1 - sum(1 for total in sums if total <= budget))


def _too_long(parts: PromptParts, count_tokens: Callable[[str], int], tokens: int, limit: int) -> ContextError:
    """Who is to blame: what was said last, or what is always there."""
    message = count_tokens(parts.history[-1]["content"] if parts.history else "") + count_tokens(parts.start)
    rest = tokens - message
    if rest > message:
        return ContextError("character_too_long", tokens=rest, limit=limit)
    return ContextError("message_too_long", tokens=message, limit=limit - rest)
