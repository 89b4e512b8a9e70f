"""RMSNorm of the rows of a step of many chats, and their products with a few narrow matrices that a checkpoint leaves
unquantized, in one kernel (cuda/narrow.cu): those of a recurrent layer's betas and decays are some of 48 outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from core.memory.sizes import FLOAT_BYTES
from core.worker.kernels.fused_norm import FusedRmsNorm
from core.worker.kernels.nvrtc import CudaModule, read_source
from core.worker.kernels.packing import K_BLOCK, TILE

# A cluster of so many blocks takes a tile of outputs, and a warp of it a K block.
CLUSTER, WARPS = 8, 16
# Rows that a cluster takes, and the longest of them.
ROWS = 32
MAX_NARROW_ROW = CLUSTER * WARPS * K_BLOCK
MAX_MATRICES, MAX_OUTPUTS = 2, 256
# `Narrow` of cuda/narrow.cu.
SHARED_BYTES = ((WARPS + 2) * ROWS + (WARPS + 1) * ROWS * TILE) * FLOAT_BYTES


def are_narrow(weights: Sequence[torch.Tensor]) -> bool:
    """Whether the kernel takes all of `weights` [outputs, inputs] in one launch."""
    outputs = sum(one.shape[0] for one in weights)
    are_few = 0 < len(weights) <= MAX_MATRICES and outputs <= MAX_OUTPUTS
    return are_few and all(one.shape[1] <= MAX_NARROW_ROW for one in weights)


class NarrowKernels:
    """For rows of one dtype on a GPU that has clusters. tile_rows: of the rows that wgmma takes."""

    def __init__(self, dtype: torch.dtype, tile_rows: int, device: torch.device) -> None:
        defines: dict[str, str | int] = {
            "BF16": int(dtype == torch.bfloat16),
            "CLUSTER": CLUSTER,
            "WARPS": WARPS,
            "TILE_ROWS": tile_rows,
        }
        module = CudaModule(read_source("hopper.cuh", "swizzled.cuh", "narrow.cu"), defines, device)
        self._norm_and_multiply = module.kernel("norm_and_multiply", SHARED_BYTES)

    def norm_and_multiply(
        self,
        x: torch.Tensor,
        norm: FusedRmsNorm,
        weights: Sequence[torch.Tensor],
        normed: torch.Tensor,
        out: torch.Tensor,
        is_swizzled: bool,
    ) -> None:
        """x [rows, inputs] -> `normed`, and by `weights` [outputs, inputs], which `are_narrow`, -> `out` [rows,
        outputs], side by side. normed: takes the rows in order, or where `is_swizzled` as wgmma takes them
        (FusedDequantGemm.empty_rows)."""
        assert norm.inverse_permutation is None
        outputs = [one.shape[0] for one in weights]
        second = (weights[1], outputs[1]) if len(weights) > 1 else (None, 0)
        tiles = sum(-(-one // TILE) for one in outputs)
        self._norm_and_multiply(
            (CLUSTER, tiles, -(-x.shape[0] // ROWS)), WARPS * 32, x, norm.weight, norm.eps, norm.offset, weights[0],
            second[0], outputs[0], second[1], normed, int(is_swizzled), out, x.stride(0),
            out.stride(0), x.shape[0], x.shape[1] // K_BLOCK,
        )  # fmt: skip


@cache
def narrow_kernels_for(dtype: torch.dtype, tile_rows: int, device: torch.device) -> NarrowKernels:
    """Raises CudaCodeError."""
    return NarrowKernels(dtype, tile_rows, device)
