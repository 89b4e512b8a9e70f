"""What is added to a slot's logits beside the model's own numbers: biases, penalties of what was said, banned ends.

The same numbers on a CPU and a GPU: one float32 for each token of the vocabulary, kept up to date token by token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from core.engine.request_options import RequestOptions
from core.engine.sampling_params import Sampling


def needs_offsets(sampling: Sampling, options: RequestOptions) -> bool:
    return bool(
        sampling.presence_penalty
        or sampling.frequency_penalty
        or options.logit_bias
        or options.min_tokens
        or options.ignore_eos
    )


def make_offsets(
    vocabulary: int, sampling: Sampling, options: RequestOptions, answer: Sequence[int]
) -> torch.Tensor | None:
    """float32 [vocabulary] after the tokens of `answer`: bias - frequency * count - presence * (count > 0).

    As OpenAI has it: the prompt's tokens do not count. None where a request asks for nothing of it.
    """
    if not needs_offsets(sampling, options):
        return None
    offsets = torch.zeros(vocabulary, dtype=torch.float32)
    for token, bias in options.logit_bias:
        offsets[token] += bias
    said: set[int] = set()
    for token in answer:
        note_token(offsets, token, sampling, is_first=token not in said)
        said.add(token)
    return offsets


def note_token(offsets: torch.Tensor, token: int, sampling: Sampling, is_first: bool) -> None:
    """Count one more `token` of the answer. is_first: the answer did not have it yet."""
    offsets[token] -= sampling.frequency_penalty + (sampling.presence_penalty if is_first else 0.0)


def banned_until(options: RequestOptions) -> float:
    """How many tokens an answer has when its end may come. A grammar says itself where its text may end."""
    if options.grammar is not None:
        return 0
    return math.inf if options.ignore_eos else options.min_tokens
