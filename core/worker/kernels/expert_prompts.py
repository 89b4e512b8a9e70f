"""Products of many rows with experts from their codes, on compute capability 9.0 (cuda/expert_prompts.cu).

Each expert's rows are row tiles of their own, so a tile is small where an expert has few rows.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from core.memory.kernels.llamadeck import expert_tile_rows
from core.memory.sizes import FLOAT_BYTES
from core.worker.kernels.expert_kernels import StackedMatrix
from core.worker.kernels.nvrtc import CudaKernel, CudaModule, read_source
from core.worker.kernels.packed_small_batch import defines_for
from core.worker.kernels.packing import K_BLOCK, CodeFormat
from core.worker.kernels.routed_pairs import RoutedPairs

GEMM_THREADS, ROW_THREADS = 384, 256
# Inputs of a row for each thread of swizzle_rows; tiles of 16 outputs that a thread block multiplies at once.
SWIZZLED_INPUTS, TILES_AT_ONCE = 32, 8
# How many K blocks of 4 or 8 bit a thread block has in flight, by rows of a tile. Not measured yet.
STAGES = {64: {4: 8, 8: 6}, 128: {4: 6, 8: 5}}


def shared_bytes(tile_rows: int, format: CodeFormat) -> int:
    """Bytes of a thread block's shared memory: `ExpertStages` of cuda/expert_prompts.cu, aligned to 1024 bytes."""
    codes = TILES_AT_ONCE * (format.pieces * 512 + format.scales_per_block * (1 + format.has_zeros) * 32)
    stage = tile_rows * K_BLOCK * 2 + codes + 16
    return STAGES[tile_rows][format.bits] * stage + 2 * tile_rows * (64 + 8) * 2 + 1024


def is_capturing(device: torch.device) -> bool:
    """Of several GPUs another one may be the current one."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return bool(torch.cuda.is_current_stream_capturing())


class SharedRoom:
    """One buffer for the products of all layers that are captured. Each layer's own would lie between what its
    neighbours hold, and holes would be left that the next layer's does not fit in.

    Steps that are captured never run at the same time, and those with most tokens are captured first.
    """

    def __init__(self) -> None:
        self._kept: torch.Tensor | None = None

    def take(self, num_bytes: int, device: torch.device) -> torch.Tensor:
        """So many bytes: the caller's own where nothing is captured."""
        if not is_capturing(device):
            return torch.empty(num_bytes, dtype=torch.uint8, device=device)
        if self._kept is None or self._kept.numel() < num_bytes:
            self._kept = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        return self._kept[:num_bytes]

    def drop(self) -> None:
        """Free what failed steps were captured with."""
        self._kept = None


class TileRoom(NamedTuple):
    """Room for the products of a prompt's experts. rows, gated: row tiles [segments, tile rows, hidden] and [segments,
    tile rows, intermediate]. of_pairs: float32 [pairs, hidden], where the rows were."""

    rows: torch.Tensor
    gated: torch.Tensor
    of_pairs: torch.Tensor


class ExpertPromptKernels:
    """The kernels of cuda/expert_prompts.cu for one dtype, format and number of rows of a tile, on one GPU."""

    def __init__(self, dtype: torch.dtype, format: CodeFormat, tile_rows: int, device: torch.device) -> None:
        self.tile_rows = tile_rows
        size, stages = shared_bytes(tile_rows, format), STAGES[tile_rows][format.bits]
        lines = [f"SEGMENTS(gate_up, {stages}, true, {size})", f"SEGMENTS(down, {stages}, false, {size})"]
        source = read_source(
            "hopper.cuh", "codes.cuh", "segments.cuh", "swizzled.cuh", "expert_prompts.cu", KERNELS=lines
        )
        module = CudaModule(source, defines_for(dtype, format) | {"TILE_ROWS": tile_rows}, device)
        self._swizzle = module.kernel("swizzle_rows")
        self._gate_up, self._down = module.kernel("gate_up", size), module.kernel("down", size)
        self._multiprocessors = int(torch.cuda.get_device_properties(device).multi_processor_count)

    def room(self, gate_up: StackedMatrix, x: torch.Tensor, routed: RoutedPairs, shared: SharedRoom) -> TileRoom:
        """For what `swizzle` gives, then `gate_up`, then `down`: one buffer, since several would leave holes between
        them that none of the others fits in. What is swizzled is not needed any more once there are results."""
        num_rows, pairs = routed.segments.shape[0] * self.tile_rows, routed.tokens.shape[0]
        hidden, intermediate = gate_up.inputs, gate_up.outputs // 2
        half = x.dtype.itemsize
        end = num_rows * intermediate * half
        later = max(num_rows * hidden * half, pairs * hidden * FLOAT_BYTES)
        room = shared.take(end + later, x.device)
        rows = room[end : end + num_rows * hidden * half].view(x.dtype).view(-1, self.tile_rows, hidden)
        gated = room[:end].view(x.dtype).view(-1, self.tile_rows, intermediate)
        of_pairs = room[end : end + pairs * hidden * FLOAT_BYTES].view(torch.float32).view(pairs, hidden)
        return TileRoom(rows, gated, of_pairs)

    def swizzle(self, matrix: StackedMatrix, x: torch.Tensor, routed: RoutedPairs, out: torch.Tensor) -> None:
        """x [tokens, inputs] -> the row tiles of the segments of `routed`, each in the order of its expert's inputs."""
        threads = out.numel() // SWIZZLED_INPUTS
        self._swizzle(
            (-(-threads // ROW_THREADS), 1, 1), ROW_THREADS, x, out, routed.segments, routed.num_segments,
            routed.tokens, matrix.permutations, x.stride(0), matrix.inputs // K_BLOCK,
        )  # fmt: skip

    def gate_up(
        self,
        matrix: StackedMatrix,
        tiles: torch.Tensor,
        routed: RoutedPairs,
        down_inverse: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        """What `swizzle` gave -> silu(gate) * up, as row tiles for `down`, whose inputs are where `down_inverse`
        [experts, intermediate] says."""
        self._multiply(self._gate_up, matrix, tiles, out, routed, down_inverse)

    def down(self, matrix: StackedMatrix, tiles: torch.Tensor, routed: RoutedPairs, out: torch.Tensor) -> None:
        """What `gate_up` gave -> [pairs, outputs] in float32, in the order of `routed`."""
        self._multiply(self._down, matrix, tiles, out, routed, None)

    def _multiply(
        self,
        kernel: CudaKernel,
        matrix: StackedMatrix,
        x: torch.Tensor,
        out: torch.Tensor,
        routed: RoutedPairs,
        down_inverse: torch.Tensor | None,
    ) -> None:
        units = routed.segments.shape[0] * -(-matrix.sizes[0] // TILES_AT_ONCE)
        kernel((min(units, self._multiprocessors), 1, 1), GEMM_THREADS, matrix.codes, matrix.scales, matrix.zeros, x,
               out, routed.segments, routed.num_segments, down_inverse, *matrix.sizes)  # fmt: skip


class ExpertPrompts:
    """The kernels for gate and up, and for down, by the rows of a tile; and the room that they work in."""

    def __init__(
        self,
        dtype: torch.dtype,
        formats: tuple[CodeFormat, CodeFormat],
        device: torch.device,
        room: SharedRoom | None = None,
    ) -> None:
        """room: of all layers on `device`."""
        self.room = room or SharedRoom()
        self._kernels = {
            rows: [prompt_kernels_for(dtype, format, rows, device) for format in formats] for rows in STAGES
        }

    def kernels(self, pairs: int, num_experts: int) -> list[ExpertPromptKernels] | None:
        """Those for so many pairs of a token and an expert; None where experts have too few rows."""
        rows = expert_tile_rows(pairs, num_experts)
        return self._kernels[rows] if rows else None


@cache
def prompt_kernels_for(
    dtype: torch.dtype, format: CodeFormat, tile_rows: int, device: torch.device
) -> ExpertPromptKernels:
    return ExpertPromptKernels(dtype, format, tile_rows, device)
