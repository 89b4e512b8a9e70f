"""Whether a captured step computes what the same step computes kernel by kernel, and where it does not."""

from __future__ import annotations

import torch

# Of the logits' standard deviation. A captured step runs the same kernels; only sums without a fixed order may differ.
TOLERANCE = 0.05
# The most rows that a message names.
MAX_ROWS = 8


def tell_difference(got: torch.Tensor, wanted: torch.Tensor) -> str | None:
    """Where logits [rows, vocabulary] in float32 differ by more than TOLERANCE of the wanted ones' standard deviation,
    for the log; None where none do. NaN is equal to NaN alone."""
    spread = float(torch.where(wanted.isfinite(), wanted, 0.0).std())
    distance = (got - wanted).abs_().nan_to_num_(nan=torch.inf, posinf=torch.inf)
    distance.masked_fill_((got == wanted) | (got.isnan() & wanted.isnan()), 0.0)
    most_by_row, tokens = distance.max(1)
    rows = (most_by_row > TOLERANCE * spread).nonzero().flatten().tolist()
    if not rows:
        return None
    row = int(most_by_row.argmax())
    token = int(tokens[row])
    named = ", ".join(map(str, rows[:MAX_ROWS])) + (", ..." if len(rows) > MAX_ROWS else "")
    return (
        f"logits of {len(rows)} of {len(wanted)} rows differ ({named}), most in row {row} at token {token}: "
        f"{float(got[row, token]):g}, {float(wanted[row, token]):g} without a graph; {TOLERANCE * spread:g} is allowed"
    )
