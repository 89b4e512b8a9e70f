"""LlamaDeck's own kernels (core/worker/kernels): 4 and 8 bit, on tensor cores of compute capability 8.0 and later.

A few rows are multiplied from the codes. Prefill is too on compute capability 9.0; other GPUs dequantize first.
"""

from __future__ import annotations

from core.checkpoint.layers import Experts
from core.memory.expert_shapes import LONG_BYTES
from core.memory.kernels.spec import KernelSpec, largest_codes_bytes
from core.memory.model_shape import MatrixShape, ModelShape
from core.memory.sizes import FLOAT_BYTES, HALF_BYTES, INT_BYTES, MIB, round_to_block

# A matrix is dequantized for a chunk in pieces of this: enough outputs at once for a large GPU.
MAX_DEQUANT_BUFFER_BYTES = 192 * MIB
# Fused prefill: blocks of threads add up sums of 128 rows and 256 outputs for one another, one a multiprocessor. 132 is
# the most that a GPU of compute capability 9.0 has.
PREFILL_MAX_BLOCKS = 132
PREFILL_TILE_ROWS = 128
PREFILL_PARTIAL_SUM_BYTES = PREFILL_TILE_ROWS * 256 * FLOAT_BYTES
# Into how many parts the columns of a slot are split in attention (cuda/attention.cu).
KV_SPLITS = 8
# Pairs of a token and an expert are sorted by expert into segments of at least so many rows (routed_pairs.py).
MIN_SEGMENT_ROWS = 8
# Experts with at least so many rows each, on average, are multiplied in tiles of so many rows, the largest first.
EXPERT_TILES = ((128, 96), (64, 24))


class LlamadeckKernel(KernelSpec):
    def matrix_bytes(self, matrix: MatrixShape) -> int:
        """Codes, scales, and zeros in half precision where any are stored; a permutation and its inverse."""
        permutations = 2 * matrix.input_groups_bytes if matrix.format.is_permuted and matrix.num_groups > 1 else 0
        scales_and_zeros = matrix.scales_bytes * (1 if matrix.format.is_symmetric else 2)
        return matrix.codes_bytes + scales_and_zeros + permutations + matrix.bias_bytes

    def scratch_bytes(self, shape: ModelShape, capability: tuple[int, int], chunk_tokens: int, num_rows: int) -> int:
        """For each way in which matrices are quantized, room for a piece of the largest matrix, or for the sums that
        blocks of threads add up; attention's own."""
        variants = {(one.format.bits, one.format.group_size, one.format.is_symmetric) for one, _ in shape.matrices}
        if has_fused_prefill(capability):
            shared = PREFILL_MAX_BLOCKS * PREFILL_PARTIAL_SUM_BYTES + round_to_block(PREFILL_MAX_BLOCKS * INT_BYTES)
        else:
            largest = max((matrix.num_elements for matrix, _ in shape.matrices), default=0)
            shared = round_to_block(dequant_buffer_bytes(largest))
        return len(variants) * shared + split_kv_bytes(shape, num_rows)

    def transient_bytes(self, matrix: MatrixShape, num_rows: int) -> int:
        """Rows as fused prefill takes them, whole tiles; at most, where they are only permuted."""
        return -(-num_rows // PREFILL_TILE_ROWS) * PREFILL_TILE_ROWS * matrix.in_features * HALF_BYTES

    def expert_bytes(self, shape: ModelShape, mlp: Experts, num_rows: int) -> int:
        """Where experts are stacked: of each pair of a token and an expert its place, its row where the expert's inputs
        are in another order, silu(gate) * up, and the result in float32; and the sums. Of many pairs, rows and what
        gate and up become lie in tiles, of which each expert has one that is not full. With room for experts' adapters
        their low-rank values too."""
        if not self.stacks_experts(shape):
            return super().expert_bytes(shape, mlp, num_rows)
        pairs = num_rows * mlp.experts_per_token
        segments = min(pairs, mlp.num_experts + pairs // MIN_SEGMENT_ROWS)
        places = pairs * (LONG_BYTES + FLOAT_BYTES + 2 * INT_BYTES) + segments * 4 * INT_BYTES
        if shape.adapters.reaches_experts:
            # What gate and up, then down are multiplied to by A, and whose it is.
            places += pairs * (3 * shape.adapters.rank * FLOAT_BYTES + 2 * INT_BYTES)
        is_gathered = any(matrix.format.is_permuted for matrix, _ in shape.expert_matrices)
        row = shape.hidden * (HALF_BYTES * is_gathered + FLOAT_BYTES) + mlp.intermediate * HALF_BYTES
        tile_rows = expert_tile_rows(pairs, mlp.num_experts)
        tiles = 0
        if tile_rows:
            in_tiles = tile_rows * min(pairs, mlp.num_experts + pairs // tile_rows) * HALF_BYTES
            # The results take the place of the rows.
            tiles = in_tiles * mlp.intermediate + max(in_tiles * shape.hidden, pairs * shape.hidden * FLOAT_BYTES)
        return places + max(pairs * row, tiles) + num_rows * shape.hidden * HALF_BYTES

    def loading_bytes(self, shape: ModelShape, is_merged: bool) -> int:
        """Codes are packed anew, from a staging buffer."""
        return largest_codes_bytes(shape)


def has_fused_prefill(capability: tuple[int, int]) -> bool:
    """Whether the GPU has the tensor cores that multiply many rows without a dequantized matrix."""
    return capability == (9, 0)


def expert_tile_rows(pairs: int, num_experts: int) -> int:
    """How many rows of an expert are multiplied at once where `pairs` of a token and an expert are many; 0 where each
    expert has few."""
    return next((rows for rows, least in EXPERT_TILES if pairs >= least * num_experts), 0)


def dequant_buffer_bytes(num_elements: int) -> int:
    """The buffer in which matrices of at most `num_elements` are dequantized, piece by piece."""
    return min(num_elements * HALF_BYTES, MAX_DEQUANT_BUFFER_BYTES)


def split_kv_bytes(shape: ModelShape, num_rows: int) -> int:
    """For each head of each row and each part of its columns a sum of values, its weight and its largest score, in
    float32, where blocks of threads cannot read one another's; and a counter a head."""
    return sum(_split_kv_bytes(num_rows * heads, dim) for heads, dim in head_shapes(shape))


def head_shapes(shape: ModelShape) -> list[tuple[int, int]]:
    """(heads, size of a head) of each kind of attention: layers of one kind share their buffers."""
    return list(dict.fromkeys((mixer.num_heads, mixer.head_dim) for mixer in shape.attentions))


def _split_kv_bytes(heads: int, dim: int) -> int:
    sums = round_to_block(heads * KV_SPLITS * dim * FLOAT_BYTES)
    return sums + 2 * round_to_block(heads * KV_SPLITS * FLOAT_BYTES) + round_to_block(heads * INT_BYTES)


LLAMADECK = LlamadeckKernel(
    "llamadeck",
    "cuda",
    bits=frozenset((4, 8)),
    group_sizes=frozenset((-1, 32, 64, 128)),
    multiple=64,
    min_capability=(8, 0),
    is_capturable=True,
    merges_permuted=True,
    multiplies_experts=True,
)
