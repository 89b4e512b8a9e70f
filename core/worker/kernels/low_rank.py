"""LoRA adapters beside matrices in a step of few rows: the kernels of cuda/low_rank.cu.

Each row has an adapter of its own, or none, which the kernels find in GPU memory by its slot; so a captured graph stays
valid. A row's result does not depend on the other rows, nor on what other adapters there are.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

import torch

from core.worker.kernels.fused_norm import FusedRmsNorm
from core.worker.kernels.nvrtc import Argument, CudaModule, read_source
from core.worker.kernels.packed_variants import MAX_NORMED

THREADS = 256
# MAX_PARTS: the most matrices with one input. MAX_NORMED_ROW: the longest row (elements) that is normed on the way, by
# the product that computes A x itself as well.
MAX_PARTS, MAX_NORMED_ROW = 3, MAX_NORMED
# MAX_TOLD: the most values of t that the blocks of a row's product tell each other. MAX_LAUNCHES: the most products of
# a pass that do.
MAX_TOLD, MAX_LAUNCHES = 192, 4096
NO_PLACE, NOWHERE = -1, 2**31 - 1


@dataclass(frozen=True, slots=True)
class SlotAdapters:
    """By slot: the place of its adapter, int32, NO_PLACE for none; and how strong it is, float32."""

    places: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True, slots=True)
class LowRankMatrices:
    """Of up to MAX_PARTS matrices with one input, whose outputs lie side by side: A [columns, in] and B [out, columns]
    each, those of all places side by side, `rank` columns a place."""

    a: tuple[torch.Tensor, ...]
    b: tuple[torch.Tensor, ...]
    rank: int


@dataclass(frozen=True, slots=True)
class LowRankRows:
    """What a product adds for its rows: B t. t = weight * A x, float32 [rows, parts, rank]; slots [rows]."""

    matrices: LowRankMatrices
    t: torch.Tensor
    slots: torch.Tensor
    places: torch.Tensor

    def arguments(self, begin: int = 0) -> tuple[Argument, ...]:
        """As the kernels take them (LowRank in cuda/low_rank.cuh), for the rows from `begin` on."""
        return _arguments(self.matrices, self.t[begin:], self.slots[begin:], self.places)

    def product_arguments(self, begin: int = 0) -> tuple[Argument, ...]:
        """As products take them, which could compute t themselves."""
        return (*self.arguments(begin), LowRankDown())


class LowRankDown(ctypes.Structure):
    """LowRankDown of cuda/low_rank.cuh. It holds addresses alone: whoever makes one keeps the tensors."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("a0", "a1", "a2", "weights", "x_places", "told", "passes")),
        ("launch", ctypes.c_int),
        ("tellers", ctypes.c_int),
    ]


class ToldValues:
    """Where the blocks of one row's product tell each other t = weight * A x, and how they know whose a value is: by
    the pass, which GPU memory counts since captured passes are replayed, and the product's number in it."""

    def __init__(self, device: torch.device) -> None:
        self.values = torch.zeros(MAX_TOLD, dtype=torch.long, device=device)
        self.passes = torch.zeros(1, dtype=torch.int32, device=device)
        self._num_launches = 0
        # How many blocks tell values: one a multiprocessor.
        self.tellers = 1
        if device.type == "cuda":
            self.tellers = int(torch.cuda.get_device_properties(device).multi_processor_count)

    def begin_pass(self) -> None:
        """Whatever products come until the next call are of one pass."""
        self.passes.add_(1)
        self._num_launches = 0

    def next_launch(self) -> int | None:
        """The number of the pass's next product; None where there have been too many."""
        self._num_launches += 1
        return self._num_launches - 1 if self._num_launches <= MAX_LAUNCHES else None


@dataclass(frozen=True, slots=True)
class LowRankRow:
    """What a product adds for its one row x, of which it may compute t itself, or `down` before it."""

    kernels: LowRankKernels
    x: torch.Tensor
    matrices: LowRankMatrices
    slots: torch.Tensor
    adapters: SlotAdapters
    told: ToldValues
    launch: int
    x_places: torch.Tensor | None
    norm: FusedRmsNorm | None

    def down(self) -> LowRankRows:
        return self.kernels.down(self.x, self.matrices, self.slots, self.adapters, self.x_places, self.norm)

    def product_arguments(self, begin: int = 0) -> tuple[Argument, ...]:
        """As products of one row take them."""
        tensors = (*_filled(self.matrices.a), self.adapters.weights, self.x_places, self.told.values, self.told.passes)
        addresses = (None if one is None else one.data_ptr() for one in tensors)
        return (
            *_arguments(self.matrices, None, self.slots, self.adapters.places),
            LowRankDown(*addresses, self.launch, self.told.tellers),
        )


def _arguments(
    matrices: LowRankMatrices, t: torch.Tensor | None, slots: torch.Tensor, places: torch.Tensor
) -> tuple[Argument, ...]:
    b, parts = matrices.b, len(matrices.b)
    second = b[0].shape[0] if parts > 1 else NOWHERE
    third = second + b[1].shape[0] if parts > 2 else NOWHERE
    return (*_filled(b), second, third, parts, b[0].shape[1], matrices.rank, t, slots, places)


def _filled(parts: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor | None, ...]:
    return (*parts, *[None] * (MAX_PARTS - len(parts)))


class LowRankKernels:
    """The compiled kernels for one dtype on one GPU. Raises CudaCodeError."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        source = read_source("low_rank.cuh", "low_rank.cu")
        module = CudaModule(source, {"BF16": int(dtype == torch.bfloat16)}, device)
        self._down, self._normed = module.kernel("low_rank_down"), module.kernel("low_rank_down_normed")
        self._up = module.kernel("low_rank_up")

    def down(
        self,
        x: torch.Tensor,
        matrices: LowRankMatrices,
        slots: torch.Tensor,
        adapters: SlotAdapters,
        x_places: torch.Tensor | None = None,
        norm: FusedRmsNorm | None = None,
    ) -> LowRankRows:
        """A times x [rows, inputs], row r with the adapter of slots[r]. The inputs are a multiple of 8.

        x_places: where each of the model's inputs lies in a row, None: in order. norm: RMSNorm first, of rows in order
        of at most MAX_NORMED_ROW values.
        """
        if x.stride(-1) != 1 or x.stride(0) % 8 or x.data_ptr() % 16:
            x = x.clone(memory_format=torch.contiguous_format)
        num_rows, size = x.shape
        parts, rank = len(matrices.a), matrices.rank
        t = torch.empty((num_rows, parts, rank), dtype=torch.float32, device=x.device)
        after = (*_filled(matrices.a), rank, slots, adapters.places, adapters.weights, t)
        grid = (parts * rank, num_rows, 1)
        if norm is None:
            self._down(grid, THREADS, x, x.stride(0), size, x_places, *after)
        else:
            self._normed(grid, THREADS, x, x.stride(0), size, norm.weight, norm.eps, norm.offset, *after)
        return LowRankRows(matrices, t, slots, adapters.places)

    def up(self, low: LowRankRows, out: torch.Tensor) -> None:
        """Add to out [rows, outputs] in place what `low` stands for."""
        num_rows, outputs = out.shape
        self._up((-(-outputs // THREADS), num_rows, 1), THREADS, out, out.stride(0), outputs, *low.arguments())


@cache
def low_rank_kernels_for(dtype: torch.dtype, device: torch.device) -> LowRankKernels:
    return LowRankKernels(dtype, device)
