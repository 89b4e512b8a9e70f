"""Samplers that look at more than one token's logits at a time: DRY, typical-p, XTC, mirostat. On a CPU, in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy
import torch

from core.engine.sampling_params import Sampling

# A repetition longer than this weighs no more, as in text-generation-webui and koboldcpp.
MAX_DRY_MATCH = 50
# Mirostat 1 estimates the exponent of Zipf's law from so many of the likeliest tokens.
MIROSTAT_TOKENS = 100


def dry_penalties(tokens: Sequence[int], sampling: Sampling, breaks: Callable[[int], bool]) -> dict[int, float]:
    """What is taken from the logit of each token that would go on with a repetition ("don't repeat yourself").

    Where the last n tokens stood before in `tokens`, what followed there loses multiplier * base ^ (n - allowed
    length), from n = allowed length on. No repetition reaches over a token that `breaks`. Its source:
    github.com/oobabooga/text-generation-webui/pull/5677.
    """
    text = numpy.asarray(tokens[-sampling.dry_range :] if sampling.dry_range else tokens, dtype=numpy.int64)
    if len(text) < 2 or breaks(int(text[-1])):
        return {}
    # Ends of earlier texts that agree with the newest one in its last `length` tokens.
    ends = numpy.flatnonzero(text[:-1] == text[-1])
    longest: dict[int, int] = {}
    length = 1
    while len(ends):
        longest |= dict.fromkeys(text[ends + 1].tolist(), length)
        if length == MAX_DRY_MATCH or length >= len(text) or breaks(int(text[-1 - length])):
            break
        ends = ends[ends >= length]
        ends = ends[text[ends - length] == text[-1 - length]]
        length += 1
    return {
        token: sampling.dry_multiplier * sampling.dry_base ** (length - sampling.dry_allowed_length)
        for token, length in longest.items()
        if length >= sampling.dry_allowed_length and not breaks(token)
    }


def typical(logits: torch.Tensor, typical_p: float) -> torch.Tensor:
    """Which of `logits` [n] locally typical sampling keeps (arXiv 2202.00666), bool [n].

    The fewest tokens whose surprise is nearest to the entropy and that together reach `typical_p`.
    """
    log_probabilities = torch.log_softmax(logits, dim=-1)
    probabilities = log_probabilities.exp()
    # A token that cannot come has no part in the entropy.
    entropy = -torch.where(probabilities > 0, probabilities * log_probabilities, 0.0).sum()
    order = torch.argsort((-log_probabilities - entropy).abs(), stable=True)
    num_kept = int((torch.cumsum(probabilities[order], dim=-1) < typical_p).sum()) + 1
    kept = torch.zeros(logits.shape, dtype=torch.bool)
    kept[order[:num_kept]] = True
    return kept


def without_top_choices(logits: torch.Tensor, threshold: float) -> torch.Tensor:
    """Which of `logits` [n] XTC keeps, bool [n]: of those at least as likely as `threshold` only the least likely.

    Its source: github.com/oobabooga/text-generation-webui/pull/6335.
    """
    probabilities = torch.softmax(logits, dim=-1)
    top = (probabilities >= threshold).nonzero().flatten()
    kept = torch.ones(logits.shape, dtype=torch.bool)
    if top.numel() > 1:
        kept[top] = False
        kept[top[probabilities[top].argmin()]] = True
    return kept


class Mirostat:
    """Holds the surprise of the drawn tokens near `tau` bits (arXiv 2007.14966); versions as llama.cpp has them."""

    def __init__(self, version: int, tau: float, eta: float) -> None:
        self._version, self._tau, self._eta = version, tau, eta
        self._limit = 2.0 * tau

    def draw(self, logits: torch.Tensor, generator: torch.Generator) -> int:
        """A token by `logits` [n], as an index of them; the next draw's limit follows from its surprise."""
        probabilities, order = torch.softmax(logits, dim=-1).sort(descending=True, stable=True)
        num_kept = self._num_kept_1(probabilities) if self._version == 1 else self._num_kept_2(probabilities)
        kept = probabilities[:num_kept] / probabilities[:num_kept].sum()
        place = int(torch.multinomial(kept, 1, generator=generator))
        self._limit -= self._eta * (-math.log2(float(kept[place])) - self._tau)
        return int(order[place])

    def _num_kept_2(self, probabilities: torch.Tensor) -> int:
        return max(1, int((-torch.log2(probabilities) <= self._limit).sum()))

    def _num_kept_1(self, probabilities: torch.Tensor) -> int:
        count: int = probabilities.numel()
        exponent = _zipf_exponent(probabilities[: min(MIROSTAT_TOKENS, count)].tolist())
        epsilon = exponent - 1.0
        if epsilon == 0.0:
            return count
        try:
            wanted: float | complex = (epsilon * 2.0**self._limit / (1.0 - float(count) ** -epsilon)) ** (
                1.0 / exponent
            )
        except (OverflowError, ZeroDivisionError):
            return count
        if isinstance(wanted, complex) or not math.isfinite(wanted):  # A power of a negative number is complex.
            return count
        return min(max(1, int(wanted)), count)


def _zipf_exponent(probabilities: Sequence[float]) -> float:
    """The exponent of Zipf's law that fits the likeliest tokens best (arXiv 2007.14966, equation 30)."""
    ratios = [
        (math.log((rank + 2) / (rank + 1)), math.log(one / other))
        for rank, (one, other) in enumerate(zip(probabilities, probabilities[1:], strict=False))
        if one > 0.0 and other > 0.0
    ]
    weights = sum(distance * distance for distance, _ in ratios)
    exponent = sum(distance * fall for distance, fall in ratios) / weights if weights else 0.0
    return exponent if exponent != 0.0 else 1.0
