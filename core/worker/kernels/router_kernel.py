"""A router with the norm before it: which experts each row goes to, and by which weights (cuda/router.cu).

A row's result does not depend on the other rows; a prompt's many rows are summed in another order than a few.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch

from core.worker.kernels.fused_norm import FusedRmsNorm
from core.worker.kernels.nvrtc import CudaModule, read_source

# The longest row (elements), the most experts, and the most that a row is given to.
MAX_SIZE, MAX_EXPERTS, MAX_CHOSEN = 8192, 512, 32
THREADS, EXPERTS_PER_BLOCK = 256, 8
# Up to so many rows have blocks of their own; of more, four share what is read of the router.
MAX_SINGLE_ROWS = 8
SHARED_ROWS = 4
# How many groups of rows one launch has counters for.
MAX_GROUPS = 256
SUMS_BYTES = 32 * 4
# Rows with more logits than these go through the tensor cores, in tiles of so many rows and so many experts. How many
# blocks of a tile's inputs, 64 each, are in shared memory at once.
MANY_LOGITS = 64 * 128
TILE_LINES, LOGIT_STAGES = 64, 4
STAGE_BYTES = 2 * TILE_LINES * 64 * 2
# The bits of `how` in cuda/router.cu.
SIGMOID, NORMALIZED, ROUND_LOGITS, ROUND_WEIGHTS = 1, 2, 4, 8


@dataclass(frozen=True, slots=True)
class RoutingRule:
    """How scores follow from logits, and weights from scores: the scores are their softmax, or their sigmoids; the best
    ones are the weights, divided by their sum (at least `least_sum`) if `is_normalized`, times `scale`. The rest says
    what is rounded to half precision."""

    is_sigmoid: bool
    is_normalized: bool
    rounds_logits: bool
    rounds_weights: bool
    scale: float = 1.0
    least_sum: float = 1e-20

    @property
    def bits(self) -> int:
        flags = (self.is_sigmoid, self.is_normalized, self.rounds_logits, self.rounds_weights)
        return sum(
            bit for bit, flag in zip((SIGMOID, NORMALIZED, ROUND_LOGITS, ROUND_WEIGHTS), flags, strict=True) if flag
        )


class RouterWeights(NamedTuple):
    """norm: RMSNorm before the router, in order. router [experts, size]. bias: float32 [experts], added to the
    scores where the best are chosen. gate [size]: of the gate of an expert that all rows go through."""

    norm: FusedRmsNorm
    router: torch.Tensor
    bias: torch.Tensor | None = None
    gate: torch.Tensor | None = None


class Routed(NamedTuple):
    """normed [rows, size], the rows' RMSNorm. ids int64 and weights float32 [rows, chosen], the best first. gates:
    float32 [rows], where there is a gate."""

    normed: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    gates: torch.Tensor | None


class RouterKernels:
    """The kernels of cuda/router.cu for routers [num_experts, size], on one GPU. All of a model share a buffer, so one
    stream must run them."""

    def __init__(self, dtype: torch.dtype, num_experts: int, size: int, device: torch.device) -> None:
        defines = {"BF16": int(dtype == torch.bfloat16), "MAX_SIZE": MAX_SIZE, "EXPERTS_EACH": -(-num_experts // 32)}
        defines |= {"LOGIT_STAGES": LOGIT_STAGES}
        module = CudaModule(read_source("router.cu"), defines, device)
        self._routes = {
            rows: module.kernel(f"route_{rows}", SUMS_BYTES + rows * size * dtype.itemsize) for rows in (1, SHARED_ROWS)
        }
        self._norm, self._choose = module.kernel("norm_rows"), module.kernel("choose_of_rows")
        self._logits = module.kernel("logits_of_tiles", LOGIT_STAGES * STAGE_BYTES)
        self._ended = torch.zeros(MAX_GROUPS, dtype=torch.int32, device=device)

    def route(
        self,
        x: torch.Tensor,
        weights: RouterWeights,
        rule: RoutingRule,
        chosen: int,
        columns: torch.Tensor | None = None,
    ) -> Routed:
        """x [rows, size] -> its norm, and where each row goes.

        columns: int64 [rows], below 0 for rows that are nobody's: those are treated as the first one, of which no more
        is to be read. For at most MAX_GROUPS rows.
        """
        if columns is None and x.shape[0] * weights.router.shape[0] > MANY_LOGITS:
            return self._route_many(x, weights, rule, chosen)
        (rows, size), experts = x.shape, weights.router.shape[0]
        (normed, ids, by, gates), logits = self._room(x, weights, chosen)
        shared = 1 if rows <= MAX_SINGLE_ROWS else SHARED_ROWS
        blocks = -(-(experts + (gates is not None)) // EXPERTS_PER_BLOCK)
        for begin in range(0, rows, MAX_GROUPS * shared):
            count = min(MAX_GROUPS * shared, rows - begin)
            self._routes[shared](
                (blocks, -(-count // shared), 1), THREADS, x[begin:], weights.norm.weight, weights.router, weights.gate,
                weights.bias, columns, normed[begin:], logits[begin:], self._ended, ids[begin:], by[begin:],
                None if gates is None else gates[begin:], x.stride(0), size, count, experts, chosen, weights.norm.eps,
                weights.norm.offset, rule.scale, rule.least_sum, rule.bits,
            )  # fmt: skip
        return Routed(normed, ids, by, gates)

    def _route_many(self, x: torch.Tensor, weights: RouterWeights, rule: RoutingRule, chosen: int) -> Routed:
        (rows, size), experts = x.shape, weights.router.shape[0]
        routed, logits = self._room(x, weights, chosen)
        norm = weights.norm
        self._norm(
            (rows, 1, 1), THREADS, x, norm.weight, weights.gate, routed.normed, routed.gates, x.stride(0), size,
            norm.eps, norm.offset,
        )  # fmt: skip
        grid = (-(-rows // TILE_LINES), -(-experts // TILE_LINES), 1)
        self._logits(grid, THREADS, routed.normed, weights.router, logits, size, rows, experts, rule.bits)
        self._choose(
            (-(-rows // (THREADS // 32)), 1, 1), THREADS, logits, weights.bias, routed.ids, routed.weights, rows,
            experts, chosen, rule.scale, rule.least_sum, rule.bits,
        )  # fmt: skip
        return routed

    @staticmethod
    def _room(x: torch.Tensor, weights: RouterWeights, chosen: int) -> tuple[Routed, torch.Tensor]:
        """What is to be written, and float32 logits [rows, experts]."""
        rows, experts, device = x.shape[0], weights.router.shape[0], x.device
        normed, logits = torch.empty_like(x), torch.empty((rows, experts), dtype=torch.float32, device=device)
        ids = torch.empty((rows, chosen), dtype=torch.long, device=device)
        by = torch.empty((rows, chosen), dtype=torch.float32, device=device)
        gates = None if weights.gate is None else torch.empty(rows, dtype=torch.float32, device=device)
        return Routed(normed, ids, by, gates), logits


@cache
def router_kernels_for(dtype: torch.dtype, num_experts: int, size: int, device: torch.device) -> RouterKernels:
    return RouterKernels(dtype, num_experts, size, device)
