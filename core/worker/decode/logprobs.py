"""The model's own log-probabilities of tokens, before any setting of sampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The natural logarithm of a token's probability, and the likeliest tokens with theirs, the likeliest first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def logprobs_of(logits: torch.Tensor, token: int, num_top: int) -> TokenLogprobs:
    """Of `token` after `logits` [vocabulary], in float32, with the `num_top` likeliest."""
    logits = logits.float()
    total = torch.logsumexp(logits, dim=-1)
    if num_top == 0:
        return TokenLogprobs(token, float(logits[token] - total))
    values, ids = torch.topk(logits, min(num_top, logits.numel()))
    top = tuple(zip(ids.tolist(), (values - total).tolist(), strict=True))
    return TokenLogprobs(token, float(logits[token] - total), top)
