"""Samples each row's next token from its logits, by the kernel of cuda/draw.cu.

Vocabularies and GPUs that it does not take go through kernels/triton_sampling.py, where one multiprocessor reads a row
several times.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import NamedTuple

import torch

from core.worker.kernels.nvrtc import CudaCodeError, CudaModule, read_source

log = logging.getLogger(__name__)
# Top-p threshold: bisect [max - LOGIT_RANGE, max] BISECTIONS times. Tokens below weigh less than e^-40 of the likeliest
# and are ignored.
LOGIT_RANGE = 40.0
BISECTIONS = 27
# A cluster of so many blocks samples a row, each with so many threads.
SAMPLE_BLOCKS = 8
SAMPLE_THREADS = 512
# The most logits that a thread's registers hold.
MAX_SCORES = 64
# The columns of SlotSamplingState.settings.
SETTINGS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class SlotSamplingState(NamedTuple):
    """What sampling reads and writes, by slot, with one slot more for padding rows.

    settings: float32 [slots + 1, 5]. seeds, tokens (the last one), positions: int64 [slots + 1].
    seen: uint8 [slots + 1, vocabulary], the tokens that a repetition penalty applies to.
    """

    settings: torch.Tensor
    seeds: torch.Tensor
    seen: torch.Tensor
    tokens: torch.Tensor
    positions: torch.Tensor


class SamplingKernel:
    """For logits of one dtype and vocabulary, on a GPU with clusters of blocks (compute capability 9.0)."""

    def __init__(self, dtype: torch.dtype, vocabulary: int, device: torch.device) -> None:
        defines: dict[str, str | int] = {
            "BF16": int(dtype == torch.bfloat16),
            "SCORES": -(-vocabulary // (SAMPLE_BLOCKS * SAMPLE_THREADS)),
            "SAMPLE_BLOCKS": SAMPLE_BLOCKS,
            "SAMPLE_THREADS": SAMPLE_THREADS,
            "RANGE": f"{LOGIT_RANGE}f",
            "BISECTIONS": BISECTIONS,
        }
        module = CudaModule(read_source("hopper.cuh", "draw.cu"), defines, device)
        self._sample = module.kernel("sample")

    def __call__(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        slots: SlotSamplingState,
        step: torch.Tensor,
        sampled: torch.Tensor,
    ) -> None:
        """As `sample_all` of kernels/triton_sampling.py, without its scratch."""
        self._sample((SAMPLE_BLOCKS, logits.shape[0], 1), SAMPLE_THREADS, logits, rows, *slots, step, sampled,
                     logits.shape[1], slots.seeds.shape[0] - 1)  # fmt: skip


@cache
def sampling_kernel_for(dtype: torch.dtype, vocabulary: int, device: torch.device) -> SamplingKernel | None:
    """The kernel for such logits; None where it does not take them."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return None
    if vocabulary > MAX_SCORES * SAMPLE_BLOCKS * SAMPLE_THREADS or torch.cuda.get_device_capability(device) < (9, 0):
        return None
    try:
        return SamplingKernel(dtype, vocabulary, device)
    except CudaCodeError as error:
        log.warning("tokens are sampled the slower way: %s", error)
        return None
