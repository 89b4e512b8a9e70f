"""Products of up to 128 rows with half-precision matrices, on tensor cores (cuda/dense.cu): the model's head, and the
matrices that a checkpoint leaves unquantized.

A row's result is the same whatever rows are beside it, up to MAX_SMALL_BATCH of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import nn

from core.memory.sizes import FLOAT_BYTES, HALF_BYTES
from core.worker.kernels.fused_norm import FusedRmsNorm
from core.worker.kernels.nvrtc import CudaModule, read_source
from core.worker.kernels.packed_variants import MAX_NORMED
from core.worker.kernels.packing import K_BLOCK, TILE
from core.worker.kernels.row_norm import norm_rows
from core.worker.kernels.step_ops import HALVES

# Into how many parts a block splits the inputs, a warp each, and whether parts take K blocks by turns; K blocks in
# flight; how many matrices one launch takes.
PARTS, IN_TURNS, AHEAD, MAX_MATRICES = 8, False, 2, 4
# Each block norms the row for itself. Where all of them would norm more inputs than these, a kernel before is faster.
MOST_NORMED_INPUTS = 4_000_000
# The most rows that a kernel takes, and how many tiles of outputs share them in a block. The least blocks of those on a
# multiprocessor, and of the one that norms.
TILES = {8: 1, 16: 2, 32: 2}
MIN_BLOCKS = {8: 1, 16: 1, 32: 1}
MIN_NORMED_BLOCKS = 1
MOST_ROWS = max(TILES)
EPILOGUES = ("none", "residual")
# Of GPUs whose tensor cores take half precision with 16 inputs at once.
MIN_CAPABILITY = (8, 0)


@cache
def module_for(dtype: torch.dtype, device: torch.device) -> CudaModule:
    """Raises CudaCodeError."""
    lines = [
        f"DENSE({epilogue}_{rows}, {rows // 8}, {tiles}, {AHEAD}, {epilogue.upper()}, false, {MIN_BLOCKS[rows]})"
        for epilogue in EPILOGUES
        for rows, tiles in TILES.items()
    ]
    lines.append(f"DENSE(normed_1, 1, 1, {AHEAD}, NONE, true, {MIN_NORMED_BLOCKS})")
    defines = {
        "BF16": int(dtype == torch.bfloat16),
        "PARTS": PARTS,
        "IN_TURNS": int(IN_TURNS),
        "MAX_NORMED": MAX_NORMED,
    }
    return CudaModule(read_source("dense.cu", VARIANTS=lines), defines, device)


class DenseKernels:
    """The compiled kernels for one dtype on one GPU."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        module = module_for(dtype, device)
        self._kernels = {
            (epilogue, rows): module.kernel(f"{epilogue}_{rows}", PARTS * rows * tiles * TILE * FLOAT_BYTES)
            for epilogue in EPILOGUES
            for rows, tiles in TILES.items()
        }
        self._normed = module.kernel("normed_1", PARTS * 8 * TILE * FLOAT_BYTES + MAX_NORMED * HALF_BYTES)

    def multiply(
        self,
        weights: Sequence[torch.Tensor],
        x: torch.Tensor,
        residual: torch.Tensor | None = None,
        norm: FusedRmsNorm | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x [rows, inputs] by up to MAX_MATRICES `weights` [outputs, inputs] -> their outputs side by side.

        residual: added, laid out as the result. norm: an RMSNorm of the rows before, without a permutation; one row of
        at most MAX_NORMED inputs takes one kernel where blocks are few. out: takes the result, as rows of a larger
        tensor. Inputs are a multiple of K_BLOCK.
        """
        outputs, inputs = [one.shape[0] for one in weights], x.shape[1]
        out = torch.empty((x.shape[0], sum(outputs)), dtype=x.dtype, device=x.device) if out is None else out
        is_fused = norm is not None and residual is None and x.shape[0] == 1 and inputs <= MAX_NORMED
        is_fused = is_fused and sum(outputs) // TILE * inputs <= MOST_NORMED_INPUTS
        if norm is not None and not is_fused:
            # The sums of scale groups, which nothing here reads, want groups of which inputs are a multiple.
            x, _ = norm_rows(x, norm.weight, norm.eps, K_BLOCK, offset=norm.offset)
        empty = MAX_MATRICES - len(weights)
        matrices = (*weights, *[None] * empty, *outputs, *[0] * empty)
        before = (norm.weight, norm.eps, norm.offset) if norm and is_fused else (None, 0.0, 0.0)
        for begin in range(0, x.shape[0], MOST_ROWS):
            rows = min(MOST_ROWS, x.shape[0] - begin)
            most = next(most for most in TILES if most >= rows)
            num_blocks = sum(-(-one // (TILE * TILES[most])) for one in outputs)
            kernel = self._normed if is_fused else self._kernels["none" if residual is None else "residual", most]
            kernel(
                (num_blocks, 1, 1), PARTS * 32, *matrices, x[begin:], out[begin:],
                None if residual is None else residual[begin:], *before,
                x.stride(0), out.stride(0), rows, inputs // K_BLOCK,
            )  # fmt: skip
        return out


def can_multiply_dense(linear: nn.Linear) -> bool:
    """Whether DenseKernels take the matrix of `linear` in its place."""
    weight = linear.weight
    if weight.is_cuda and torch.cuda.get_device_capability(weight.device) < MIN_CAPABILITY:
        return False
    is_plain = linear.bias is None and weight.is_contiguous() and weight.data_ptr() % 16 == 0
    return is_plain and weight.dtype in HALVES and weight.shape[1] % K_BLOCK == 0


@cache
def dense_kernels_for(dtype: torch.dtype, device: torch.device) -> DenseKernels:
    return DenseKernels(dtype, device)
