"""Samples the next token from logits, in transformers' order: penalty, temperature, top-k, top-p, min-p."""

from __future__ import annotations

import torch

from core.engine.sampling_params import Sampling

# Sorting a vocabulary of 50,000 takes milliseconds on a CPU. The likeliest 64 tokens mostly hold top-p's mass, the
# likeliest 1024 almost always.
SORTED_HEAD = 1024
SORTED_FEW = 64
# Below this temperature the likeliest token is taken: dividing by it would leave the range of float32.
MIN_TEMPERATURE = 1e-5


def sample(logits: torch.Tensor, sampling: Sampling, seen: torch.Tensor, generator: torch.Generator) -> int:
    """The next token from `logits` [vocabulary]. seen: the ids of the tokens that the repetition penalty applies to."""
    logits = penalize(logits.float(), seen, sampling.repetition_penalty)
    if sampling.temperature < MIN_TEMPERATURE:
        return int(logits.max(dim=0).indices)  # On a CPU in a third of argmax's time; the first of equals, too.
    scores, ids = cut(logits / sampling.temperature, sampling)
    choice = torch.multinomial(torch.softmax(scores, dim=-1), 1, generator=generator)
    return int(choice) if ids is None else int(ids[choice])


def penalize(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """`logits`, those of `seen` ids divided by `penalty` where positive, else multiplied (arXiv 1909.05858)."""
    if penalty == 1.0 or seen.numel() == 0:
        return logits
    chosen = logits[seen]
    return logits.index_put((seen,), torch.where(chosen > 0, chosen / penalty, chosen * penalty))


def cut(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The logits that top-k, top-p and min-p leave, and their token ids; None: the whole vocabulary in order."""
    ids = None
    if 0 < sampling.top_k < logits.numel():
        logits, ids = torch.topk(logits, sampling.top_k)
    if sampling.top_p < 1.0:
        logits, ids = cut_top_p(logits, ids, sampling.top_p)
    if sampling.min_p > 0.0:
        kept = logits >= logits.max() + torch.log(torch.tensor(sampling.min_p, device=logits.device))
        ids = kept.nonzero().squeeze(-1) if ids is None else ids[kept]
        logits = logits[kept]
    return logits, ids


def cut_top_p(logits: torch.Tensor, ids: torch.Tensor | None, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The fewest likeliest tokens whose probability reaches `top_p`; always at least one (arXiv 1904.09751)."""
    log_total = torch.logsumexp(logits, dim=-1)
    for size in (min(size, logits.numel()) for size in (SORTED_FEW, SORTED_HEAD, logits.numel())):
        head, order = torch.topk(logits, size)
        mass = torch.cumsum(torch.exp(head - log_total), dim=-1)
        if mass[-1] >= top_p or size == logits.numel():
            break
    count = int((mass < top_p).sum()) + 1
    kept = order[:count]
    return head[:count], kept if ids is None else ids[kept]
