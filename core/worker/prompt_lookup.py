"""Speculation by lookup in the text itself: where the last tokens stood before, what followed them may follow again.

Several tokens are then verified in one step, and each is drawn as it would have been by itself, so that the answer
stays the same; what differs from the proposal ends the step. That is faster where an answer copies, as in code and in
edits, and slower elsewhere. So proposals are made only after they would have been right for a while, which costs
nothing to know, and as long as what they lose is no more than a small share of the answer's time. It needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.engine.protocol import Generate

# How many tokens are looked up.
NGRAM_TOKENS = 3
# How many tokens in a row must have been what the lookup says before a proposal; and where there is much credit.
RIGHT_TOKENS, EASY_TOKENS, EASY_CREDIT = 4, 1, 4.0
# How many tokens of a long text are indexed at a time, so that no step waits for it.
INDEXED_TOKENS = 512
# Credit, in steps of one token: at the beginning, for each token, and at most. A proposal that fails is paid from it.
FIRST_CREDIT, TOKEN_CREDIT, MOST_CREDIT = 1.5, 0.015, 8.0


def may_be_proposed(command: Generate) -> bool:
    """Whether a request's tokens may be verified several at a time: each is drawn by its position and the tokens before
    it alone, and nothing is told of it but itself."""
    sampling, options = command.sampling, command.options
    is_plain = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.0, 0.0, 0.0)
    counts = options.min_tokens > 0 or options.logprobs is not None or options.prompt_logprobs
    return is_plain and not sampling.is_slow and options.grammar is None and not counts


class PromptLookup:
    """What one answer's text says about its next tokens."""

    def __init__(self) -> None:
        # Of each n-gram, where the token after its last occurrence stands.
        self._places: dict[tuple[int, ...], int] = {}
        self._num_indexed = self._num_seen = 0
        self._num_right = 0
        self._credit = FIRST_CREDIT

    def follow(self, tokens: Sequence[int]) -> None:
        """Take in the text with its newest tokens, and note whether the lookup had said them."""
        if not self._num_seen:
            self._num_seen = len(tokens)
        for place in range(self._num_seen, len(tokens)):
            self._index(tokens, place)
            following = self._find(tokens, place)
            is_right = following is not None and tokens[following] == tokens[place]
            self._num_right = self._num_right + 1 if is_right else 0
            self._credit = min(self._credit + TOKEN_CREDIT, MOST_CREDIT)
        self._num_seen = len(tokens)
        self._index(tokens, len(tokens))

    def is_ready(self, steps: float) -> bool:
        """Whether to propose tokens now, where to verify them takes as long as `steps` of one token."""
        num_wanted = EASY_TOKENS if self._credit >= EASY_CREDIT else RIGHT_TOKENS
        return self._num_right >= num_wanted and self._credit >= steps - 1.0

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow the text."""
        place = self._find(tokens, len(tokens))
        if place is None:
            return []
        # A text that repeats itself goes on so: what is proposed is looked up beyond the text's end.
        period = len(tokens) - place
        return [tokens[place + index % period] for index in range(most)]

    def judge(self, num_drawn: int, steps: float) -> None:
        """Of a proposal `num_drawn` tokens came, by a step that took as long as `steps` of one."""
        self._credit = min(self._credit + num_drawn - steps, MOST_CREDIT)
        if num_drawn < steps:
            self._num_right = 0

    def _find(self, tokens: Sequence[int], end: int) -> int | None:
        """Where the token stands that followed the n-gram before `end`."""
        return self._places.get(tuple(tokens[end - NGRAM_TOKENS : end])) if end >= NGRAM_TOKENS else None

    def _index(self, tokens: Sequence[int], end: int) -> None:
        """Index further n-grams, of those whose next token stands before `end`."""
        end = min(end, self._num_indexed + INDEXED_TOKENS)
        for place in range(max(self._num_indexed, NGRAM_TOKENS), end):
            self._places[tuple(tokens[place - NGRAM_TOKENS : place])] = place
        self._num_indexed = max(self._num_indexed, end)
