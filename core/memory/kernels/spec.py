"""What a matrix kernel takes and the memory that it needs; one KernelSpec a kernel, none of its code."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from core.checkpoint.layers import Experts
from core.memory.expert_shapes import looped_bytes
from core.memory.model_shape import MatrixShape, ModelShape
from core.memory.sizes import HALF_BYTES

Dtype = Literal["float16", "bfloat16"]
ALL_BITS = frozenset((2, 3, 4, 8))
ALL_GROUP_SIZES = frozenset((-1, 16, 32, 64, 128, 256, 512, 1024))


@dataclass(frozen=True, slots=True)
class Device:
    """Where a model is to run. `capability`: CUDA's compute capability. `has_code`: torch was built for it.
    `has_c_compiler`: there is what Triton builds with."""

    kind: Literal["cuda", "cpu"]
    capability: tuple[int, int] = (0, 0)
    has_code: bool = True
    has_c_compiler: bool = True


@dataclass(frozen=True)
class KernelSpec:
    """A kernel that keeps a checkpoint's own tensors; others override what they keep and need.

    `multiple` divides both sides of every matrix. `takes_partial_groups`: a matrix's last scale group may be shorter
    than the others. `is_capturable`: its calls can be captured in CUDA graphs, and are
    held against plain runs. `is_last_resort`: it dequantizes every matrix for every token, and is for what no other
    kernel takes. `merges_permuted`: it takes matrices of one input as one also where their inputs are permuted alike.
    `fallback` runs the matrices of a model that this kernel does not take, if it takes any. `multiplies_experts`: it
    has a product with all chosen experts of a layer; others run one after the other, which no graph can hold.
    """

    name: str
    device: Literal["cuda", "cpu"]
    bits: frozenset[int]
    group_sizes: frozenset[int]
    takes_partial_groups: bool = False
    multiple: int = 1
    min_capability: tuple[int, int] = (0, 0)
    needs_c_compiler: bool = False
    is_capturable: bool = False
    is_last_resort: bool = False
    merges_permuted: bool = False
    fallback: KernelSpec | None = None
    multiplies_experts: bool = False

    def can_run(self, matrix: MatrixShape, device: Device) -> bool:
        """Whether the kernel takes `matrix` on `device`."""
        format, sides = matrix.format, (matrix.in_features, matrix.out_features)
        return (
            self.device == device.kind
            and device.capability >= self.min_capability
            and (device.has_c_compiler or not self.needs_c_compiler)
            and format.bits in self.bits
            and format.group_size in self.group_sizes
            and all(side % self.multiple == 0 for side in sides)
            and (self.takes_partial_groups or matrix.in_features % format.group_size == 0)
        )

    def can_run_all(self, matrices: Collection[MatrixShape], device: Device) -> bool:
        """Whether the kernel runs a model of `matrices` on `device`, with its fallback for some of them."""
        others = [matrix for matrix in matrices if not self.can_run(matrix, device)]
        if self.fallback is None or len(others) == len(matrices):
            return not others
        return self.fallback.can_run_all(others, device)

    def can_capture(self, shape: ModelShape) -> bool:
        """Whether steps of a model of `shape` can be captured with this kernel."""
        return self.is_capturable and shape.is_capturable and (not shape.has_experts or self.stacks_experts(shape))

    def stacks_experts(self, shape: ModelShape) -> bool:
        """Whether the experts of a layer are one module of the kernel's own."""
        return self.multiplies_experts and shape.are_experts_alike

    def dtype(self, wanted: str, device: Device) -> Dtype:
        """What to compute in, for a model whose configuration says `wanted`."""
        return "bfloat16" if wanted == "bfloat16" and device.capability >= (8, 0) else "float16"

    def matrix_bytes(self, matrix: MatrixShape) -> int:
        """What stays on the device for one matrix."""
        return (
            matrix.codes_bytes
            + matrix.zeros_bytes
            + matrix.scales_bytes
            + matrix.input_groups_bytes
            + matrix.bias_bytes
        )

    def scratch_bytes(self, shape: ModelShape, capability: tuple[int, int], chunk_tokens: int, num_rows: int) -> int:
        """What the kernel keeps beside the weights, once for all matrices. num_rows: the most that a step decodes."""
        return 0

    def transient_bytes(self, matrix: MatrixShape, num_rows: int) -> int:
        """What one product needs for its moment, beside its input and output."""
        return 0

    def expert_bytes(self, shape: ModelShape, mlp: Experts, num_rows: int) -> int:
        """What the chosen experts of `num_rows` tokens need for their moment, beside their input."""
        transient = max((self.transient_bytes(matrix, num_rows) for matrix, _ in shape.expert_matrices), default=0)
        return looped_bytes(mlp, shape.hidden, num_rows, transient)

    def loading_bytes(self, shape: ModelShape, is_merged: bool) -> int:
        """What finishing a matrix needs for its moment: what is merged is read first, then put where it stays."""
        return largest_codes_bytes(shape) if is_merged else 0


def largest_codes_bytes(shape: ModelShape) -> int:
    return max(matrix.codes_bytes for matrix, _ in shape.matrices)


def dequantized_bytes(matrix: MatrixShape) -> int:
    """The matrix in half precision."""
    return matrix.num_elements * HALF_BYTES
