"""Log-probabilities of each row's token and of the likeliest ones, by the kernel of cuda/logprobs.cu."""

from __future__ import annotations

from functools import cache

import torch

from core.worker.kernels.nvrtc import CudaModule, read_source

THREADS = 1024


class LogprobsKernel:
    """For logits of one dtype on one GPU. Raises CudaCodeError."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        defines = {"BF16": int(dtype == torch.bfloat16), "LOGPROB_THREADS": THREADS}
        self._run = CudaModule(read_source("logprobs.cu"), defines, device).kernel("logprobs")

    def __call__(
        self,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        chosen: torch.Tensor,
        top_values: torch.Tensor,
        top_tokens: torch.Tensor,
        num_top: int,
    ) -> None:
        """Write `chosen` [rows] float32, and the first `num_top` of `top_values` and `top_tokens` [rows, most], float32
        and int64, for `logits` [rows, vocabulary] and `tokens` [rows], of which those below 0 are none."""
        self._run((logits.shape[0], 1, 1), THREADS, logits, tokens, chosen, top_values, top_tokens,
                  logits.shape[1], num_top, top_values.shape[1])  # fmt: skip


@cache
def logprobs_kernel_for(dtype: torch.dtype, device: torch.device) -> LogprobsKernel:
    return LogprobsKernel(dtype, device)
