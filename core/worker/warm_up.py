"""A load's last part: everything runs once at full size, so that nothing is wrong, grows or is loaded later on, while a
person waits."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer

from core.common.errors import EngineError
from core.engine.protocol import Generate
from core.engine.request_options import RequestOptions
from core.engine.sampling_params import Sampling
from core.worker.decode.steps import PendingTokens, Steps
from core.worker.scheduler import Scheduler

# Between them every branch of core/worker/decode/sampling.py, with the whole vocabulary sorted.
SAMPLING_VARIANTS = (
    Sampling(temperature=0.0, max_new_tokens=3),
    Sampling(temperature=1.0, top_p=1.0, repetition_penalty=1.1, max_new_tokens=3),
    Sampling(temperature=5.0, top_p=0.9999, max_new_tokens=3),
    Sampling(temperature=1.0, top_p=0.9, top_k=40, min_p=0.05, max_new_tokens=3),
    Sampling(temperature=1.0, presence_penalty=0.5, frequency_penalty=0.5, max_new_tokens=3),
    Sampling(temperature=1.0, dry_multiplier=0.8, typical_p=0.9, xtc_probability=0.5, max_new_tokens=3),
)
# The first loads code, the second tells how long it takes.
VERIFICATIONS = 2


class AnyTokens:
    """A grammar that lets all tokens come."""

    is_active, is_over = True, False
    error: EngineError | None = None

    def __init__(self, vocabulary: int) -> None:
        self._mask = torch.full((-(-vocabulary // 32),), -1, dtype=torch.int32)

    def allowed(self) -> torch.Tensor:
        return self._mask

    def accept(self, token: int) -> None:
        """Any is right."""


def warm_up(steps: Steps, chunk_tokens: int, name: str) -> None:
    """Run the largest passes that a chat can need: a chunk, and a token of every slot, at the end of the context.

    Raises EngineError where what comes out is no number.
    """
    for num_slots in (1, steps.num_slots):
        for slot in range(num_slots):
            prefill_last_chunk(steps, slot, chunk_tokens, name)
        # One more token than the context holds: where nobody reads.
        finite_tokens(steps.decode(range(num_slots)), name)


def prefill_last_chunk(steps: Steps, slot: int, chunk_tokens: int, name: str) -> None:
    count = min(chunk_tokens, steps.context_tokens)
    steps.reset_slot(slot, SAMPLING_VARIANTS[0], 0, [0])
    finite_tokens(steps.prefill(slot, [0] * count, steps.context_tokens - count, is_last=True), name)


def finite_tokens(pending: PendingTokens | None, name: str) -> list[int]:
    """The tokens of a step. Raises EngineError where one is no number's."""
    drawn = pending.wait() if pending is not None else []
    tokens = [token for token in drawn if token is not None]
    if len(tokens) < len(drawn):
        raise EngineError("not_finite", model=name)
    return tokens


def warm_up_verifying(steps: Steps, name: str) -> None:
    """Verify as many tokens of a chat as a step takes, where steps do that. Raises EngineError as `warm_up` does."""
    count = min(steps.max_verified, steps.context_tokens - 1)
    for _ in range(VERIFICATIONS if count > 0 else 0):
        steps.reset_slot(0, SAMPLING_VARIANTS[0], 0, [0])
        (first,) = finite_tokens(steps.prefill(0, [0], 0, is_last=True), name)
        finite_tokens(steps.verify(0, [first] * count, 1), name)


def warm_up_sampling(steps: Steps, tokenizer: Tokenizer, chunk_tokens: int) -> None:
    """Answer a few short requests in every way to draw: each kind of settings, and by a grammar, whose draws are late
    where steps run ahead."""
    scheduler = Scheduler(steps, tokenizer, frozenset(), chunk_tokens, lambda _: None)
    lengths = (1, 9, chunk_tokens - 1, chunk_tokens + 9, 1, 9)
    options = RequestOptions(logprobs=1)
    for request, (length, sampling) in enumerate(zip(lengths, SAMPLING_VARIANTS, strict=True)):
        prompt = (0,) * min(length, steps.context_tokens - 1)
        scheduler.submit(Generate(request, prompt, sampling, options=options))
    by_grammar = Generate(len(lengths), (0,), SAMPLING_VARIANTS[0], options=options)
    scheduler.submit(by_grammar, AnyTokens(steps.vocabulary))
    while not scheduler.is_idle:
        scheduler.step()
