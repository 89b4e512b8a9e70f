"""Ranks the quantizations of one model for a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.quantization import MatrixFormat
from core.common.errors import DeckError
from core.memory.fit import FitReport
from core.memory.kernels.registry import KERNELS

Choice = tuple[Checkpoint, FitReport | DeckError]
KERNEL_RANK = {kernel.name: rank for rank, kernel in enumerate(KERNELS)}


def best_choice(choices: Sequence[Choice]) -> int | None:
    """The place of the one to recommend in `choices`; None where none fits.

    Of those that fit: first the fastest kernel, because every token waits for it, so that 4 bit comes before 8 bit
    where the card has a kernel for that alone; then those whose full context fits; then the finest quantization (more
    bits, smaller groups, act-order); then the smaller download; then the one that is listed first.
    """
    ranked = [
        (_rank(checkpoint, report), -place)
        for place, (checkpoint, report) in enumerate(choices)
        if isinstance(report, FitReport) and report.fits
    ]
    return -max(ranked)[1] if ranked else None


def _rank(checkpoint: Checkpoint, report: FitReport) -> tuple[float, ...]:
    has_full_context = report.max_context >= checkpoint.max_context_tokens
    fineness = quality(checkpoint.quantization)
    return (-KERNEL_RANK[report.kernel], has_full_context, *fineness, -checkpoint.size_bytes)


def quality(quantization: MatrixFormat) -> tuple[float, float, bool]:
    """How near the weights stay to the model's own; larger is nearer. No groups is one group a column."""
    group_size = math.inf if quantization.group_size < 0 else quantization.group_size
    return (quantization.bits, -group_size, quantization.is_permuted)
