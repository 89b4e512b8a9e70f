"""The kernels of a CPU: ATen's for 4 bit, and matrices dequantized at load for everything else."""

from __future__ import annotations

from core.memory.kernels.spec import ALL_BITS, ALL_GROUP_SIZES, Device, Dtype, KernelSpec


class CpuKernel(KernelSpec):
    def dtype(self, wanted: str, device: Device) -> Dtype:
        """ATen's int4 kernel takes bfloat16 only."""
        return "bfloat16"


DENSE = CpuKernel("dense", "cpu", bits=ALL_BITS, group_sizes=ALL_GROUP_SIZES, takes_partial_groups=True)
ATEN_INT4 = CpuKernel(
    "aten_int4", "cpu", bits=frozenset((4,)), group_sizes=frozenset((32, 64, 128)), multiple=16, fallback=DENSE
)
