"""Keys and values in 8 bit: integers from -127 to 127, times a scale of each head and token.

By the measured error: benchmarks/cache_error.py compares it with the floating-point kind of 8 bit. The kernels do the
same to the bit (core/worker/kernels/cuda/pages.cuh).
"""

from __future__ import annotations

import torch

LARGEST = 127


def quantize(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """values [..., head dim] -> integers of the same shape, scales [..., 1] in the values' type."""
    scales = (values.abs().amax(-1, keepdim=True).float() / LARGEST).to(values.dtype)
    inverse = torch.where(scales == 0, 0.0, 1.0 / scales.float())
    return (values.float() * inverse).round_().clamp_(-LARGEST, LARGEST).to(torch.int8), scales


def dequantize(integers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The values, in the type of `scales`."""
    return integers.to(scales.dtype).mul_(scales)
