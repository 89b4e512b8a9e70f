"""What the engine's loop knows of each slot and of the request at work in it. It needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from core.common.errors import EngineError
from core.engine.detokenize import TextStream
from core.engine.protocol import Generate, TokenInfo
from core.worker.decode.draw_rules import TokenConstraint
from core.worker.prompt_lookup import PromptLookup

if TYPE_CHECKING:
    from core.worker.adapter_reader import ReadAdapter


class AnswerConstraint(TokenConstraint, Protocol):
    """An answer's grammar, see core/worker/constraints.py."""

    def accept(self, token: int) -> None: ...

    @property
    def is_over(self) -> bool: ...

    @property
    def error(self) -> EngineError | None: ...


@dataclass(slots=True)
class Slot:
    """One row of the layers' states. `cached_tokens`: the tokens that it has taken in, as far as they are known, with
    the adapter of `mark`. `is_paused`: its request waits for room in the cache, see core/worker/cache_room.py."""

    index: int
    cached_tokens: list[int] = field(default_factory=list)
    mark: object = None
    request: ActiveRequest | None = None
    is_paused: bool = False


@dataclass(slots=True)
class ActiveRequest:
    """One request at work. `tokens`: the prompt and the sampled tokens; the slot's cache holds a prefix of them.

    After a thought was ended, `num_prompt` of them are prefilled, the answer so far among them.
    """

    command: Generate
    tokens: list[int]
    num_prompt: int
    stream: TextStream
    seed: int
    asked_s: float
    began_s: float = 0.0
    first_token_s: float = 0.0
    num_reused: int = 0
    unsent: str = ""
    sent_s: float = 0.0
    # Tokens that events have reported: some give no text by themselves.
    num_reported: int = 0
    # Tokens that were enqueued and not read yet.
    num_in_flight: int = 0
    # How many of the answer's tokens are a thought's.
    num_thought: int = 0
    # The answer's tokens in the prompt, which has them after a thought was ended.
    num_earlier: int = 0
    # The prompt's tokens whose log-probabilities were asked for and are computed.
    num_scored: int = 0
    # Who began first goes first where the cache has no room for all.
    turn: int = 0
    # What its text says about its next tokens, where those may be proposed; and how many of them a step verifies.
    lookup: PromptLookup | None = None
    num_proposed: int = 0
    # Whether it was told that it waits for room, since when, and how long its answer waited in all before.
    is_told_paused: bool = False
    paused_s: float = 0.0
    waited_s: float = 0.0
    # With their log-probabilities, and not sent yet.
    unsent_tokens: list[TokenInfo] = field(default_factory=list)
    constraint: AnswerConstraint | None = None
    adapter: ReadAdapter | None = None

    @property
    def mark(self) -> object:
        """What its keys and values depend on beside its tokens."""
        return None if self.adapter is None else self.adapter.mark

    @property
    def num_sampled(self) -> int:
        return len(self.tokens) - self.num_prompt + self.num_earlier

    @property
    def has_drawn(self) -> bool:
        """Whether it has a token beyond what is prefilled as its prompt."""
        return len(self.tokens) > self.num_prompt

    @property
    def num_to_read(self) -> int:
        """How many of its tokens the cache holds before the next one is decoded: the step that draws it reads the last
        of an answer's, but a prompt's are all prefilled."""
        return len(self.tokens) - 1 if self.has_drawn else self.num_prompt

    @property
    def waits_for_token(self) -> bool:
        """Whether the next token can be asked for only when the last one is known: the host draws it."""
        return self.command.sampling.is_slow

    @property
    def is_scored(self) -> bool:
        """Whether the log-probabilities of its prompt are asked for. Once a thought was ended all of them are told, and
        what else is read then is the answer's."""
        return self.command.options.prompt_logprobs and not self.num_earlier

    def note_pause(self, is_paused: bool, now_s: float) -> None:
        """It waits for room from now on, or goes on. Until its first token that is the prompt's time, as all before."""
        if is_paused:
            self.paused_s = now_s
        elif self.has_drawn:
            self.waited_s += now_s - self.paused_s
        self.is_told_paused = is_paused

    def decode_s(self, now_s: float) -> float:
        """How long its tokens took from the first on, without what it waited for room."""
        if not self.first_token_s:
            return 0.0
        waits_s = now_s - self.paused_s if self.is_told_paused and self.has_drawn else 0.0
        return now_s - self.first_token_s - self.waited_s - waits_s


def is_prefilling(slot: Slot) -> bool:
    """Whether a part of the slot's text is still to be prefilled: of its prompt, or of what its pages have lost."""
    return slot.request is not None and len(slot.cached_tokens) < slot.request.num_to_read


def count_tokens_ahead(slot: Slot) -> None:
    """Count what the slot takes in of an answer that ends: a step in flight reads its last token, though what that step
    samples is dropped."""
    request = slot.request
    assert request is not None
    if request.num_in_flight and not is_prefilling(slot) and len(request.tokens) > request.num_prompt:
        slot.cached_tokens = request.tokens[:]
