"""ExLlamaV2's kernel as gptqmodel compiles it: 4 bit."""

from __future__ import annotations

from core.memory.kernels.spec import Device, Dtype, KernelSpec, dequantized_bytes
from core.memory.model_shape import MatrixShape, ModelShape
from core.memory.sizes import FLOAT_BYTES, HALF_BYTES, round_to_block

# gptqmodel's ExllamaV2Linear.scratch_space_fixed rounds each of its two terms up by this much.
PAD_BYTES = 128


class ExllamaV2Kernel(KernelSpec):
    def dtype(self, wanted: str, device: Device) -> Dtype:
        return "float16"

    def matrix_bytes(self, matrix: MatrixShape) -> int:
        """The checkpoint's tensors; in act-order a permutation and its inverse, 2 bytes an input."""
        permutations = 2 * round_to_block(matrix.in_features * HALF_BYTES) if matrix.format.is_permuted else 0
        return super().matrix_bytes(matrix) + permutations

    def scratch_bytes(self, shape: ModelShape, capability: tuple[int, int], chunk_tokens: int, num_slots: int) -> int:
        """Room to dequantize the largest matrix, and for a product in float32."""
        return max(scratch_bytes(matrix, chunk_tokens) for matrix, _ in shape.matrices)


def scratch_bytes(matrix: MatrixShape, max_rows: int) -> int:
    return dequantized_bytes(matrix) + matrix.out_features * max_rows * FLOAT_BYTES + 2 * PAD_BYTES


EXLLAMA_V2 = ExllamaV2Kernel(
    "exllama_v2",
    "cuda",
    bits=frozenset((4,)),
    group_sizes=frozenset((-1, 32, 64, 128)),
    multiple=32,
    min_capability=(6, 0),
    needs_compiler=True,
    is_capturable=True,
)
