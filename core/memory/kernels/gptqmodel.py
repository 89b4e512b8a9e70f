"""gptqmodel's kernels: Triton, which builds in C what launches its kernels, and torch for what nothing else takes."""

from __future__ import annotations

from core.memory.kernels.spec import ALL_BITS, ALL_GROUP_SIZES, KernelSpec, dequantized_bytes
from core.memory.model_shape import MatrixShape
from core.memory.sizes import INT_BYTES


class TritonKernel(KernelSpec):
    def transient_bytes(self, matrix: MatrixShape, num_rows: int) -> int:
        return dequantized_bytes(matrix)


class TorchKernel(KernelSpec):
    def transient_bytes(self, matrix: MatrixShape, num_rows: int) -> int:
        """The matrix, and while it is dequantized its codes as 4-byte words and their result."""
        return dequantized_bytes(matrix) + 2 * matrix.num_elements * INT_BYTES


TRITON = TritonKernel(
    "triton",
    "cuda",
    bits=frozenset((2, 4, 8)),
    group_sizes=ALL_GROUP_SIZES,
    takes_partial_groups=True,
    multiple=32,
    min_capability=(7, 0),
    needs_c_compiler=True,
    is_capturable=True,
)
TORCH = TorchKernel(
    "torch", "cuda", bits=ALL_BITS, group_sizes=ALL_GROUP_SIZES, takes_partial_groups=True, is_last_resort=True
)
