"""RMSNorm of rows, with what products of a few of them need beside it: the kernel of cuda/rows.cu."""

from __future__ import annotations

from functools import cache

import torch

from core.worker.kernels.nvrtc import CudaKernel, CudaModule, read_source
from core.worker.kernels.packed_small_batch import empty_group_sums

# The longest row (elements) that RMSNorm takes, and its threads.
MAX_ROW = 32768
NORM_THREADS = 512


@cache
def norm_kernel(dtype: torch.dtype, device: torch.device) -> CudaKernel:
    """The compiled kernel. Raises CudaCodeError."""
    defines = {"BF16": int(dtype == torch.bfloat16), "MAX_ROW": MAX_ROW}
    return CudaModule(read_source("rows.cu"), defines, device).kernel("rmsnorm_and_sum")


def norm_rows(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    inputs_per_group: int,
    inverse_permutation: torch.Tensor | None = None,
    offset: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMSNorm of x [rows, size], each value stored where `inverse_permutation` says; and the sums of the result's scale
    groups, as SmallBatchKernels.sum_rows gives them. offset: what is added to each weight."""
    out, sums = torch.empty_like(x), empty_group_sums(x, inputs_per_group)
    norm_kernel(x.dtype, x.device)((x.shape[0], 1, 1), NORM_THREADS, x, weight, out, inverse_permutation, x.stride(0),
                                   x.shape[1], eps, offset, sums, sums.stride(0), inputs_per_group)  # fmt: skip
    return out, sums
