"""The kernels of a CPU: ATen's for 4 bit, and matrices dequantized at load for everything else."""

from __future__ import annotations

from core.memory.kernels.spec import ALL_BITS, ALL_GROUP_SIZES, Device, Dtype, KernelSpec, dequantized_bytes
from core.memory.model_shape import MatrixShape

LONG_BYTES = 8


class CpuKernel(KernelSpec):
    def dtype(self, wanted: str, device: Device) -> Dtype:
        """ATen's int4 kernel takes bfloat16 only."""
        return "bfloat16"

    def matrix_bytes(self, matrix: MatrixShape) -> int:
        """ATen's codes with a scale and a zero point a group, and an order of 8 bytes an input; else all of it in half
        precision."""
        if not self.fallback:
            return dequantized_bytes(matrix) + matrix.bias_bytes
        if not self.can_run(matrix, Device("cpu")):
            return self.fallback.matrix_bytes(matrix)
        order = matrix.in_features * LONG_BYTES if matrix.format.is_permuted else 0
        return matrix.num_elements // 2 + 2 * matrix.scales_bytes + order + matrix.bias_bytes


DENSE = CpuKernel("dense", "cpu", bits=ALL_BITS, group_sizes=ALL_GROUP_SIZES, takes_partial_groups=True)
ATEN_INT4 = CpuKernel(
    "aten_int4", "cpu", bits=frozenset((4,)), group_sizes=frozenset((32, 64, 128)), multiple=16, fallback=DENSE
)
