"""A norm that a product of few rows computes on its way, whatever the matrix is stored as."""

from __future__ import annotations

from typing import NamedTuple

import torch


class FusedRmsNorm(NamedTuple):
    """RMSNorm fused into a product: its weight [inputs], the matrix's inverse permutation (None: in order), epsilon,
    and what is added to each weight."""

    weight: torch.Tensor
    inverse_permutation: torch.Tensor | None
    eps: float
    offset: float = 0.0
