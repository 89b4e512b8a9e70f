"""Products with the matrices of a layer's experts, straight from 4- or 8-bit codes (cuda/experts.cu).

A pair's result is the same whatever pairs are beside it, and whether they are sorted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch

from core.worker.kernels.nvrtc import CudaKernel, CudaModule, read_source
from core.worker.kernels.packed_small_batch import defines_for
from core.worker.kernels.packed_variants import stage_bytes
from core.worker.kernels.packing import K_BLOCK, TILE, CodeFormat
from core.worker.kernels.routed_pairs import Added, RoutedPairs

GATE_UP_WARPS, DOWN_WARPS = 8, 16


@dataclass(frozen=True, slots=True)
class StackedMatrix:
    """One matrix of every expert of a layer, each as PackedMatrix has it.

    codes: int32 [experts, tiles, K blocks, bits / 4, 32, 4]. scales: half precision [experts, tiles, groups, 8, 2].
    zeros: like scales, or None where all are in the middle. permutations: int32 [experts, inputs], the model's input at
    each position of an expert's matrix; None where all are in order.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    permutations: torch.Tensor | None

    @property
    def num_experts(self) -> int:
        return int(self.codes.shape[0])

    @property
    def outputs(self) -> int:
        return int(self.codes.shape[1]) * TILE

    @property
    def inputs(self) -> int:
        return int(self.codes.shape[2]) * K_BLOCK

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Tiles, K blocks and scale groups of one expert."""
        return int(self.codes.shape[1]), int(self.codes.shape[2]), int(self.scales.shape[2])


class Variant(NamedTuple):
    """A product's segments have up to 8 * `row_tiles` rows. A warp computes `tiles` tiles at once, with `stages` loads
    of their weights in flight. `blocks`: the least blocks on a multiprocessor."""

    row_tiles: int
    tiles: int
    stages: int
    blocks: int


# For segments of 1, 8, 16 and 32 rows, the first that there is room for. Not measured yet.
GATE_UP = {
    1: (Variant(1, 2, 3, 3), Variant(1, 2, 2, 3), Variant(1, 2, 2, 2)),
    8: (Variant(1, 2, 3, 3), Variant(1, 2, 2, 2)),
    16: (Variant(2, 2, 3, 2), Variant(2, 2, 2, 1)),
    32: (Variant(4, 4, 3, 1), Variant(4, 2, 2, 1)),
}
DOWN = {
    1: (Variant(1, 1, 4, 2), Variant(1, 1, 3, 2)),
    8: (Variant(1, 2, 3, 1), Variant(1, 1, 3, 1)),
    16: (Variant(2, 2, 3, 1), Variant(2, 1, 2, 1)),
    32: (Variant(4, 1, 3, 1), Variant(4, 1, 2, 1)),
}


def shared_bytes(variant: Variant, rows: int, warps: int, format: CodeFormat) -> int:
    """Bytes of a block's shared memory for segments of `rows`: the weights in flight, and one or two sets of sums."""
    in_flight = warps * variant.stages * variant.tiles * stage_bytes(format)
    sets = 2 if rows == 1 or (rows == 8 and warps == GATE_UP_WARPS) else 1
    return in_flight + sets * warps * rows * variant.tiles * TILE * 4


class ExpertKernels:
    """The kernels of cuda/experts.cu for one dtype and format, on one GPU; by rows of a segment."""

    def __init__(self, dtype: torch.dtype, format: CodeFormat, device: torch.device) -> None:
        room = torch.cuda.get_device_properties(device).shared_memory_per_block_optin

        def first_with_room(variants: tuple[Variant, ...], rows: int, warps: int) -> Variant:
            fitting = (one for one in variants if shared_bytes(one, rows, warps, format) <= room)
            return next(fitting, variants[-1])

        gate_up = {rows: first_with_room(some, rows, GATE_UP_WARPS) for rows, some in GATE_UP.items()}
        down = {rows: first_with_room(some, rows, DOWN_WARPS) for rows, some in DOWN.items()}
        lines = [
            f"GATE_UP(gate_up_{rows}, {one.row_tiles}, {one.tiles}, {one.stages}, {int(rows == 1)}, {one.blocks})"
            for rows, one in gate_up.items()
        ]
        lines += [
            f"DOWN_TOKENS(down_1, {one.stages})"
            if rows == 1
            else f"DOWN_SEGMENTS(down_{rows}, {one.row_tiles}, {one.tiles}, {one.stages})"
            for rows, one in down.items()
        ]
        source = read_source("codes.cuh", "units.cuh", "segments.cuh", "experts.cu", VARIANTS=lines)
        module = CudaModule(source, defines_for(dtype, format), device)

        def launch(name: str, one: Variant, rows: int, warps: int) -> tuple[CudaKernel, int, Variant]:
            kernel = module.kernel(f"{name}_{rows}", shared_bytes(one, rows, warps, format))
            return kernel, kernel.most_blocks(warps * 32), one

        self._gate_up = {rows: launch("gate_up", one, rows, GATE_UP_WARPS) for rows, one in gate_up.items()}
        self._down = {rows: launch("down", one, rows, DOWN_WARPS) for rows, one in down.items()}

    def gate_up(
        self,
        matrix: StackedMatrix,
        x: torch.Tensor,
        ids: torch.Tensor,
        routed: RoutedPairs | None,
        rows: int,
        down_inverse: torch.Tensor | None,
    ) -> torch.Tensor:
        """x [tokens, inputs], or of each pair [pairs, inputs] as `PairKernels.gather` gives them -> silu(gate) * up
        [pairs, intermediate], in the order of `routed`, each value where down wants it (down_inverse [experts,
        intermediate])."""
        pairs, chosen = ids.numel(), ids.shape[1]
        is_gathered = matrix.permutations is not None
        out = torch.empty((pairs, matrix.outputs // 2), dtype=x.dtype, device=x.device)
        kernel, most_blocks, variant = self._gate_up[rows]
        segments = pairs if routed is None else routed.segments.shape[0]
        turns = segments * (matrix.outputs // TILE // variant.tiles)
        by_token = routed is not None and not is_gathered
        kernel(
            (min(turns, most_blocks), 1, 1), GATE_UP_WARPS * 32, matrix.codes, matrix.scales, matrix.zeros, x, out, ids,
            *(None, None) if routed is None else (routed.segments, routed.num_segments),
            routed.tokens if routed is not None and by_token else None, down_inverse, *matrix.sizes, x.stride(0),
            1 if is_gathered else chosen, pairs,
        )  # fmt: skip
        return out

    def down(
        self,
        matrix: StackedMatrix,
        gated: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
        out: torch.Tensor,
        added: Added,
    ) -> torch.Tensor:
        """gated [pairs, inputs] in the router's order -> the weighted sums and what is `added`, into `out` [tokens,
        outputs]."""
        kernel, most_blocks, _ = self._down[1]
        (tokens, chosen), tiles = ids.shape, matrix.sizes[0]
        kernel((min(tokens * tiles, most_blocks), 1, 1), DOWN_WARPS * 32, matrix.codes, matrix.scales, matrix.zeros,
               gated, out, ids, weights, *added, *matrix.sizes, chosen, tokens)  # fmt: skip
        return out

    def down_segments(
        self, matrix: StackedMatrix, gated: torch.Tensor, routed: RoutedPairs, rows: int, chosen: int
    ) -> torch.Tensor:
        """gated [pairs, inputs] -> [pairs, outputs] in float32, both in the order of `routed`."""
        kernel, most_blocks, variant = self._down[rows]
        out = torch.empty((gated.shape[0], matrix.outputs), dtype=torch.float32, device=gated.device)
        turns = routed.segments.shape[0] * -(-matrix.sizes[0] // variant.tiles)
        kernel((min(turns, most_blocks), 1, 1), DOWN_WARPS * 32, matrix.codes, matrix.scales, matrix.zeros, gated, out,
               routed.segments, routed.num_segments, *matrix.sizes, chosen)  # fmt: skip
        return out


@cache
def expert_kernels_for(dtype: torch.dtype, format: CodeFormat, device: torch.device) -> ExpertKernels:
    return ExpertKernels(dtype, format, device)
