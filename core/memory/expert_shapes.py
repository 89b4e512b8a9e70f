"""What of a mixture of experts its memory and its speed follow from; no torch."""

from __future__ import annotations

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.experts import expert_matrix
from core.checkpoint.layers import Experts, LayerShape
from core.memory.matrix_groups import MatrixGroup, merged_matrices
from core.memory.sizes import FLOAT_BYTES, HALF_BYTES

LONG_BYTES = 8


def expert_groups(checkpoint: Checkpoint, permuted: bool = False) -> list[MatrixGroup]:
    """Gate and up of each expert, which are one matrix whether others are merged or not."""
    return [one for one in merged_matrices(checkpoint, permuted) if expert_matrix(next(iter(one.sizes))) is not None]


def looped_bytes(mlp: Experts, hidden: int, num_rows: int, transient: int) -> int:
    """What running one expert after the other needs beside its input, where all rows choose one of them: the sum in
    float32, the rows, gate and up, what becomes of them, the result and its share; and who chose whom."""
    rows = num_rows * (hidden * 2 * (FLOAT_BYTES + HALF_BYTES) + mlp.intermediate * 4 * HALF_BYTES)
    pairs = num_rows * mlp.experts_per_token * (3 * LONG_BYTES + FLOAT_BYTES)
    return rows + pairs + transient


def router_bytes(mlp: Experts, hidden: int, num_rows: int) -> int:
    """What choosing needs: some routers bring input and matrix to float32; scores, and what they are chosen by."""
    inputs = (num_rows + mlp.num_experts) * hidden * FLOAT_BYTES
    return inputs + 5 * num_rows * mlp.num_experts * FLOAT_BYTES


def token_share(layers: tuple[tuple[LayerShape, int], ...]) -> float:
    """Which share of the experts' matrices one token is multiplied with."""
    mixtures = [(layer.mlp, count) for layer, count in layers if isinstance(layer.mlp, Experts)]
    total = sum(count * mlp.num_experts for mlp, count in mixtures)
    return sum(count * mlp.experts_per_token for mlp, count in mixtures) / total if total else 1.0
