"""The kernel of cuda/draw.cu, which draws each row's next token; knows no model and no request.

What it cannot take goes through core/worker/kernels/triton_ops.py's, in which one multiprocessor reads a row again and
again.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import NamedTuple

import torch

from core.worker.kernels.nvrtc import CudaCodeError, CudaModule
from core.worker.kernels.w4_small_batch import read_source

log = logging.getLogger(__name__)
# Between these logits below the largest, top-p's border is looked for; e^-40 is nothing. How often they are halved.
LOGIT_RANGE = 40.0
BISECTIONS = 27
# How many neighbours on the GPU share a row, and how many threads each has.
DRAW_BLOCKS = 8
DRAW_THREADS = 512
# More than that are too many for a thread's registers.
MAX_SCORES = 64


# What a slot's row of settings holds.
SETTINGS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class BySlot(NamedTuple):
    """What the next token follows from, by slot, with one more for rows that stand for nobody: settings [slots + 1, 5],
    seeds, seen [slots + 1, vocabulary], tokens, positions [slots + 1]."""

    settings: torch.Tensor
    seeds: torch.Tensor
    seen: torch.Tensor
    tokens: torch.Tensor
    positions: torch.Tensor


class DrawKernel:
    """For logits of one type over one vocabulary, on a GPU whose blocks read one another's shared memory."""

    def __init__(self, dtype: torch.dtype, vocabulary: int, device: torch.device) -> None:
        defines: dict[str, str | int] = {
            "BF16": int(dtype == torch.bfloat16),
            "SCORES": -(-vocabulary // (DRAW_BLOCKS * DRAW_THREADS)),
            "DRAW_BLOCKS": DRAW_BLOCKS,
            "DRAW_THREADS": DRAW_THREADS,
            "RANGE": f"{LOGIT_RANGE}f",
            "BISECTIONS": BISECTIONS,
        }
        module = CudaModule(read_source("hopper.cuh", "draw.cu"), defines, device)
        self._draw = module.kernel("draw")

    def __call__(
        self, logits: torch.Tensor, rows: torch.Tensor, slots: BySlot, step: torch.Tensor, drawn: torch.Tensor
    ) -> None:
        """As `draw_all` of core/worker/kernels/triton_ops.py, without its scratch."""
        self._draw((DRAW_BLOCKS, logits.shape[0], 1), DRAW_THREADS, logits, rows, *slots, step, drawn, logits.shape[1],
                   slots.seeds.shape[0] - 1)  # fmt: skip


@cache
def drawing_for(dtype: torch.dtype, vocabulary: int, device: torch.device) -> DrawKernel | None:
    """The kernel for such logits, or None where it takes none."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return None
    if vocabulary > MAX_SCORES * DRAW_BLOCKS * DRAW_THREADS or torch.cuda.get_device_capability(device) < (9, 0):
        return None
    try:
        return DrawKernel(dtype, vocabulary, device)
    except CudaCodeError as error:
        log.warning("tokens are drawn the slower way: %s", error)
        return None
