"""Pairs of a token and an expert that a router chose for it: sorted by expert, and summed by token (cuda/pairs.cu).

The host learns neither what was chosen nor how many rows an expert has, so every call can be captured.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from core.worker.kernels.nvrtc import CudaModule, read_source

# The most experts of a layer that sort_pairs takes, and the most of a token that one block adds up.
MAX_EXPERTS, MAX_SUMMED = 1024, 16
SORT_THREADS, GATHER_THREADS, SUM_THREADS = 1024, 256, 256
# What sort_pairs keeps in shared memory: three numbers for each of its threads.
SORT_BYTES = 3 * SORT_THREADS * 4
# Pairs are sorted where an expert's codes would otherwise be read so many times, on average.
WORTH_SORTING = 1.35
# Segments have so many rows where an expert has, on average, at most so many.
ROWS_BY_AVERAGE = ((8, 4.0), (16, 10.0), (32, float("inf")))


class Added(NamedTuple):
    """What is added to the weighted sums of tokens: `residual`, and `shared`, which an expert gives that all tokens go
    through, both [tokens, size]; `gates` float32 [tokens] multiply the latter."""

    residual: torch.Tensor | None = None
    shared: torch.Tensor | None = None
    gates: torch.Tensor | None = None


class RoutedPairs(NamedTuple):
    """Pairs of a token and an expert, sorted by expert. tokens: each place's token. positions: each pair's place.
    segments: int32 [num_segments, 4], expert, first place, number of places, 0. num_segments: int32 [1]."""

    tokens: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor
    num_segments: torch.Tensor


def is_worth_sorting(tokens: int, chosen: int, num_experts: int) -> bool:
    """Whether `tokens` that choose `chosen` of the experts each share so many of them that their pairs are sorted."""
    if chosen > MAX_SUMMED:
        return True
    return tokens * chosen > WORTH_SORTING * expected_experts(tokens, chosen, num_experts)


def expected_experts(tokens: int, chosen: int, num_experts: int) -> float:
    """How many experts are chosen at least once, where each token chooses any of them alike."""
    return num_experts * (1 - (1 - min(chosen, num_experts) / num_experts) ** tokens)


def rows_per_segment(tokens: int, chosen: int, num_experts: int) -> int:
    """How many rows of an expert are multiplied at once."""
    average = tokens * chosen / expected_experts(tokens, chosen, num_experts)
    return next(rows for rows, most in ROWS_BY_AVERAGE if average <= most)


def most_segments(pairs: int, num_experts: int, rows: int) -> int:
    """The most segments of `rows` that `pairs` pairs make: each expert may have one that is not full."""
    return min(pairs, num_experts + pairs // rows)


class PairKernels:
    """The kernels of cuda/pairs.cu for one dtype, on one GPU."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        module = CudaModule(read_source("segments.cuh", "pairs.cu"), {"BF16": int(dtype == torch.bfloat16)}, device)
        self._sort = module.kernel("sort_pairs", SORT_BYTES)
        self._gather, self._sum = module.kernel("gather_rows"), module.kernel("sum_pairs")

    def sort(self, ids: torch.Tensor, num_experts: int, most_rows: int) -> RoutedPairs:
        """ids int64 [tokens, chosen] -> the pairs by expert, in segments of at most `most_rows`."""
        pairs, device = ids.numel(), ids.device
        tokens, positions = torch.empty((2, pairs), dtype=torch.int32, device=device)
        segments = torch.empty((most_segments(pairs, num_experts, most_rows), 4), dtype=torch.int32, device=device)
        count = torch.empty(1, dtype=torch.int32, device=device)
        self._sort((1, 1, 1), SORT_THREADS, ids, tokens, positions, segments, count, pairs, num_experts, ids.shape[1],
                   most_rows)  # fmt: skip
        return RoutedPairs(tokens, positions, segments, count)

    def gather(
        self,
        x: torch.Tensor,
        ids: torch.Tensor,
        permutations: torch.Tensor,
        positions: torch.Tensor | None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x [tokens, size] -> [pairs, size], at `positions` if given, each in the order of its expert's inputs. out:
        takes the result."""
        out = torch.empty((ids.numel(), x.shape[1]), dtype=x.dtype, device=x.device) if out is None else out
        self._gather((ids.numel(), 1, 1), GATHER_THREADS, x, out, ids, permutations, positions, x.stride(0), x.shape[1],
                     ids.shape[1])  # fmt: skip
        return out

    def sum(
        self,
        of_pairs: torch.Tensor,
        weights: torch.Tensor,
        positions: torch.Tensor,
        out: torch.Tensor,
        added: Added,
    ) -> torch.Tensor:
        """of_pairs float32 [pairs, size], weights float32 [tokens, chosen] -> the weighted sums and what is `added`,
        into `out` [tokens, size]."""
        (tokens, size), chosen = out.shape, weights.shape[1]
        blocks = -(-tokens * size // 4 // SUM_THREADS)
        self._sum((blocks, 1, 1), SUM_THREADS, of_pairs, out, weights, positions, *added, size, chosen, tokens)
        return out


@cache
def pair_kernels_for(dtype: torch.dtype, device: torch.device) -> PairKernels:
    return PairKernels(dtype, device)
