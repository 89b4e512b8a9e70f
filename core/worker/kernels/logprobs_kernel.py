"""Log-probabilities of each row's token and of the likeliest ones, by the kernel of cuda/logprobs.cu."""

from __future__ import annotations

from functools import cache

import torch

from core.worker.kernels.nvrtc import CudaModule, read_source

THREADS = 1024
# How many of the likeliest tokens there is room for in a block.
MAX_TOP = 20


class LogprobsKernel:
    """For logits of one dtype on one GPU. Raises CudaCodeError."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        defines = {"BF16": int(dtype == torch.bfloat16), "LOGPROB_THREADS": THREADS, "MAX_TOP": MAX_TOP}
        self._run = CudaModule(read_source("logprobs.cu"), defines, device).kernel("logprobs")

    def __call__(self, logits: torch.Tensor, tokens: torch.Tensor, told: torch.Tensor, num_top: int) -> None:
        """For `logits` [rows, vocabulary] and `tokens` [rows], of which those below 0 are none.

        told: int32 [rows, 1 + 2 * MAX_TOP], so that one copy brings all of it to the host. By row the bits of the
        token's own log-probability (float32), of those of the `num_top` likeliest, and from 1 + MAX_TOP on their ids.
        """
        self._run((logits.shape[0], 1, 1), THREADS, logits, tokens, told, logits.shape[1], num_top, MAX_TOP)


@cache
def logprobs_kernel_for(dtype: torch.dtype, device: torch.device) -> LogprobsKernel:
    return LogprobsKernel(dtype, device)


def make_told(num_rows: int, device: torch.device) -> torch.Tensor:
    return torch.zeros((num_rows, 1 + 2 * MAX_TOP), dtype=torch.int32, device=device)


def split_told(told: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel told: float32 [rows, 1 + MAX_TOP], the tokens' own first, and the ids int32 [rows, MAX_TOP]."""
    return told.view(torch.float32)[:, : 1 + MAX_TOP], told[:, 1 + MAX_TOP :]
