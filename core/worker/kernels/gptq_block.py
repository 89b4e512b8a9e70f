"""GPTQ's rounding of 128 inputs of a matrix, by the kernel of cuda/gptq_block.cu: a loop of torch takes a launch or ten
for each input."""

from __future__ import annotations

from functools import cache

import torch

from core.worker.kernels.nvrtc import CudaModule, read_source

THREADS = 256
ROWS = THREADS // 32


class GptqBlockKernel:
    """On one GPU. Raises CudaCodeError."""

    def __init__(self, device: torch.device) -> None:
        defines = {"BF16": 0, "GPTQ_THREADS": THREADS}
        self._run = CudaModule(read_source("gptq_block.cu"), defines, device).kernel("gptq_block")

    def __call__(
        self,
        weights: torch.Tensor,
        inverse: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor,
        groups: torch.Tensor,
        rounded: torch.Tensor,
        errors: torch.Tensor,
        losses: torch.Tensor,
        highest: int,
    ) -> None:
        """Write `rounded`, `errors` and `losses` for `weights`, all [rows, 128] with inputs side by side.

        `inverse` [128, 128] is the upper Cholesky factor of the inverse Hessian, `scales` and `zeros` are [groups,
        rows], all float32; `groups` [128] int32 is each input's group; codes are 0 … `highest`."""
        num_rows = weights.shape[0]
        self._run((-(-num_rows // ROWS), 1, 1), THREADS, weights, inverse.contiguous(), scales.contiguous(),
                  zeros.contiguous(), groups.contiguous(), rounded, errors, losses, num_rows, weights.stride(0),
                  rounded.stride(0), errors.stride(0), losses.stride(0), highest)  # fmt: skip


@cache
def gptq_block_kernel_for(device: torch.device) -> GptqBlockKernel:
    return GptqBlockKernel(device)
