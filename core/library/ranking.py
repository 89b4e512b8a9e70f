"""Ranks the quantizations of one model for a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.quantization import MatrixFormat
from core.common.errors import DeckError
from core.memory.fit_report import FitReport
from core.memory.kernels.llamadeck import LLAMADECK

Candidate = tuple[Checkpoint, FitReport | DeckError]


def best_candidate(candidates: Sequence[Candidate]) -> int | None:
    """The index of the candidate to recommend; None where none fits.

    Of those that fit, in this order: captured steps, because plain ones are several times slower; the fastest kernel,
    because every token waits for it; a full context that fits, and is quick where the load is; the finest quantization
    (more bits, smaller groups, act-order); the smaller download; the one listed first.
    So 4 bit comes before 8 bit through our own kernel, whose token reads half as many bytes.
    """
    ranked = [
        (_rank(checkpoint, report), -index)
        for index, (checkpoint, report) in enumerate(candidates)
        if isinstance(report, FitReport) and report.fits
    ]
    return -max(ranked)[1] if ranked else None


def _rank(checkpoint: Checkpoint, report: FitReport) -> tuple[float, ...]:
    has_full_context = report.proposed_context >= checkpoint.context_limits.usual_tokens
    fidelity = fidelity_of(checkpoint.quantization)
    is_own = report.load.kernel == LLAMADECK
    speed = is_own + (is_own and checkpoint.quantization.bits == 4)
    return (not report.is_slow, speed, has_full_context, *fidelity, -checkpoint.size_bytes)


def fidelity_of(quantization: MatrixFormat) -> tuple[float, float, bool]:
    """How near the weights stay to the original model's; larger is nearer. Without groups a column is one group."""
    group_size = math.inf if quantization.group_size < 0 else quantization.group_size
    return (quantization.bits, -group_size, quantization.is_permuted)
