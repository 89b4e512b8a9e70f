"""Products with the matrices of a layer's experts, straight from 4- or 8-bit codes (cuda/experts.cu).

A pair's result is the same whatever pairs are beside it, and whether they are sorted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch

from core.worker.kernels.expert_low_rank import LowRankPairs
from core.worker.kernels.nvrtc import Argument, CudaKernel, CudaModule, read_source
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
    of their weights in flight. `blocks`: the least blocks on a multiprocessor. `parts`: how many of the 8 parts of the
    inputs of gate and up a warp multiplies."""

    row_tiles: int
    tiles: int
    stages: int
    blocks: int
    parts: int = 1


# By name: for segments of 1, 8, 16 and 32 rows, the first that there is room for; and for many pairs that are a segment
# each. Not measured yet.
GATE_UP = {
    "1": (Variant(1, 2, 3, 3), Variant(1, 2, 2, 3), Variant(1, 2, 2, 2)),
    "pairs": (Variant(1, 2, 3, 3, 2), Variant(1, 2, 2, 3, 2), Variant(1, 2, 2, 2, 2)),
    "8": (Variant(1, 2, 3, 3), Variant(1, 2, 2, 2)),
    "16": (Variant(2, 2, 3, 2), Variant(2, 2, 2, 1)),
    "32": (Variant(4, 4, 3, 1), Variant(4, 2, 2, 1)),
}
DOWN = {
    "1": (Variant(1, 1, 4, 2), Variant(1, 1, 3, 2)),
    "pairs": (Variant(1, 2, 3, 1), Variant(1, 1, 3, 2)),
    "8": (Variant(1, 2, 3, 1), Variant(1, 1, 3, 1)),
    "16": (Variant(2, 2, 3, 1), Variant(2, 1, 2, 1)),
    "32": (Variant(4, 1, 3, 1), Variant(4, 1, 2, 1)),
}
# A warp takes several parts of gate's inputs where a turn would hardly begin before it ends: of at most so many inputs,
# and where blocks have so many turns each. Down has more tiles a turn where blocks have so many of those.
SHORT_INPUTS = 2048
MANY_TURNS = 1.5


def shared_bytes(variant: Variant, name: str, warps: int, format: CodeFormat) -> int:
    """Bytes of a block's shared memory: the weights in flight, and one or two sets of sums."""
    in_flight = warps * variant.stages * variant.tiles * stage_bytes(format)
    rows = 1 if name in ("1", "pairs") else int(name)
    sets = 2 if rows == 1 or (rows == 8 and warps == GATE_UP_WARPS) else 1
    return in_flight + sets * warps * variant.parts * rows * variant.tiles * TILE * 4


class Launch(NamedTuple):
    """A compiled variant, and how many of its blocks the GPU runs at once."""

    kernel: CudaKernel
    most_blocks: int
    variant: Variant


class ExpertKernels:
    """The kernels of cuda/experts.cu for one dtype and format, on one GPU; by rows of a segment. `adapters`: whether
    they add what LoRA adapters add."""

    def __init__(self, dtype: torch.dtype, format: CodeFormat, device: torch.device, adapters: bool = False) -> None:
        self._of = dtype, format, device
        room = torch.cuda.get_device_properties(device).shared_memory_per_block_optin

        def choose(all_variants: Mapping[str, tuple[Variant, ...]], warps: int) -> dict[str, Variant]:
            """Of each name the first that there is room for."""
            return {
                name: next((one for one in some if shared_bytes(one, name, warps, format) <= room), some[-1])
                for name, some in all_variants.items()
            }

        gate_up, down = choose(GATE_UP, GATE_UP_WARPS), choose(DOWN, DOWN_WARPS)
        lines = [
            f"GATE_UP(gate_up_{name}, {one.row_tiles}, {one.tiles}, {one.stages}, {int(name in ('1', 'pairs'))}, "
            f"{one.parts}, {one.blocks})"
            for name, one in gate_up.items()
        ]
        lines += [
            f"DOWN_TOKENS(down_{name}, {one.tiles}, {one.stages}, {one.blocks})"
            if name in ("1", "pairs")
            else f"DOWN_SEGMENTS(down_{name}, {one.row_tiles}, {one.tiles}, {one.stages})"
            for name, one in down.items()
        ]
        of_adapters = ("low_rank.cuh", "expert_low_rank.cuh") if adapters else ()
        source = read_source("codes.cuh", "units.cuh", "segments.cuh", *of_adapters, "experts.cu", VARIANTS=lines)
        module = CudaModule(source, defines_for(dtype, format) | {"ADAPTERS": int(adapters)}, device)

        def launches(prefix: str, variants: dict[str, Variant], warps: int) -> dict[str, Launch]:
            kernels = {
                name: module.kernel(f"{prefix}_{name}", shared_bytes(one, name, warps, format))
                for name, one in variants.items()
            }
            return {name: Launch(one, one.most_blocks(warps * 32), variants[name]) for name, one in kernels.items()}

        self._gate_up = launches("gate_up", gate_up, GATE_UP_WARPS)
        self._down = launches("down", down, DOWN_WARPS)

    def with_adapters(self) -> ExpertKernels:
        """Those for the same matrices that add what adapters add."""
        return expert_kernels_for(*self._of, adapters=True)

    def gate_up(
        self,
        matrix: StackedMatrix,
        x: torch.Tensor,
        ids: torch.Tensor,
        routed: RoutedPairs | None,
        rows: int,
        down_inverse: torch.Tensor | None,
        low: LowRankPairs | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x [tokens, inputs], or of each pair [pairs, inputs] as `PairKernels.gather` gives them -> silu(gate) * up
        [pairs, intermediate], in the order of `routed`, each value where down wants it (down_inverse [experts,
        intermediate]). low: what adapters add to gate and up, of kernels that add it. out: takes the result."""
        pairs, chosen = ids.numel(), ids.shape[1]
        is_gathered = matrix.permutations is not None
        out = torch.empty((pairs, matrix.outputs // 2), dtype=x.dtype, device=x.device) if out is None else out
        segments, tiles = pairs if routed is None else routed.segments.shape[0], matrix.sizes[0]

        def turns(one: Variant) -> int:
            return int(segments) * -(-tiles // (one.tiles * one.parts))

        launch = self._gate_up[str(rows)]
        if rows == 1 and matrix.inputs <= SHORT_INPUTS and turns(launch.variant) > MANY_TURNS * launch.most_blocks:
            launch = self._gate_up["pairs"]
        by_token = routed is not None and not is_gathered
        blocks = min(turns(launch.variant), launch.most_blocks)
        launch.kernel(
            (blocks, 1, 1), GATE_UP_WARPS * 32, matrix.codes, matrix.scales, matrix.zeros, x, out, ids,
            *(None, None) if routed is None else (routed.segments, routed.num_segments),
            routed.tokens if routed is not None and by_token else None, down_inverse, *matrix.sizes, x.stride(0),
            1 if is_gathered else chosen, pairs, *_argument(low),
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
        low: LowRankPairs | None = None,
    ) -> torch.Tensor:
        """gated [pairs, inputs] in the router's order -> the weighted sums and what is `added`, into `out` [tokens,
        outputs]. low: what adapters add before, of kernels that add it."""
        launch, (tokens, chosen), tiles = self._down["1"], ids.shape, matrix.sizes[0]
        if tokens * tiles > MANY_TURNS * launch.most_blocks:
            launch = self._down["pairs"]
        turns = tokens * -(-tiles // launch.variant.tiles)
        launch.kernel((min(turns, launch.most_blocks), 1, 1), DOWN_WARPS * 32, matrix.codes, matrix.scales,
                      matrix.zeros, gated, out, ids, weights, *added, *matrix.sizes, chosen, tokens,
                      *_argument(low))  # fmt: skip
        return out

    def down_segments(
        self,
        matrix: StackedMatrix,
        gated: torch.Tensor,
        routed: RoutedPairs,
        rows: int,
        chosen: int,
        low: LowRankPairs | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """gated [pairs, inputs] -> [pairs, outputs] in float32, both in the order of `routed`."""
        launch = self._down[str(rows)]
        if out is None:
            out = torch.empty((gated.shape[0], matrix.outputs), dtype=torch.float32, device=gated.device)
        turns = routed.segments.shape[0] * -(-matrix.sizes[0] // launch.variant.tiles)
        launch.kernel((min(turns, launch.most_blocks), 1, 1), DOWN_WARPS * 32, matrix.codes, matrix.scales,
                      matrix.zeros, gated, out, routed.segments, routed.num_segments, *matrix.sizes, chosen,
                      *_argument(low))  # fmt: skip
        return out


def _argument(low: LowRankPairs | None) -> tuple[Argument, ...]:
    return () if low is None else (low.argument(),)


@cache
def expert_kernels_for(
    dtype: torch.dtype, format: CodeFormat, device: torch.device, adapters: bool = False
) -> ExpertKernels:
    return ExpertKernels(dtype, format, device, adapters)
