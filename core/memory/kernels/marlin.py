"""Marlin as gptqmodel compiles it: 4 and 8 bit, symmetric."""

from __future__ import annotations

from core.memory.kernels.spec import KernelSpec, largest_codes_bytes
from core.memory.model_shape import MatrixShape, ModelShape
from core.memory.sizes import BLOCK_BYTES, FLOAT_BYTES, HALF_BYTES

# Sums in float32 in a tile for each multiprocessor: SMs * 64 * 256 values; the largest GPU has 170 SMs.
REDUCE_BYTES = 170 * 64 * 256 * FLOAT_BYTES


class MarlinKernel(KernelSpec):
    def matrix_bytes(self, matrix: MatrixShape) -> int:
        """No zeros; a group index and its order only where groups are in act-order."""
        permutations = 2 * matrix.input_groups_bytes if matrix.format.is_permuted and matrix.num_groups > 1 else 0
        return matrix.codes_bytes + matrix.scales_bytes + permutations + matrix.bias_bytes + BLOCK_BYTES * 2

    def transient_bytes(self, matrix: MatrixShape, num_rows: int) -> int:
        permuted = num_rows * matrix.in_features * HALF_BYTES if matrix.format.is_permuted else 0
        return REDUCE_BYTES + permuted

    def loading_bytes(self, shape: ModelShape, is_merged: bool) -> int:
        """Codes are packed anew, from a staging buffer."""
        return largest_codes_bytes(shape)


MARLIN = MarlinKernel(
    "marlin",
    "cuda",
    bits=frozenset((4, 8)),
    group_sizes=frozenset((-1, 32, 64, 128)),
    takes_asymmetric=False,
    multiple=64,
    either_multiple=128,
    min_capability=(7, 5),
    needs_compiler=True,
    is_capturable=True,
)
