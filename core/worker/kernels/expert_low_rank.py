"""LoRA adapters beside the matrices of a layer's experts: the kernels of cuda/expert_low_rank.cu.

Of each pair of a token and an expert they compute t = weight * A x, and the products with experts add B t
(cuda/experts.cu). A token's adapter is found in GPU memory by its slot; so a captured graph stays valid. What a pair
gets depends on no other pair.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from core.worker.kernels.low_rank import SlotAdapters
from core.worker.kernels.nvrtc import CudaModule, read_source
from core.worker.kernels.routed_pairs import RoutedPairs

# Values of a pair's t that one block sums, a warp each.
THREADS, DOTS_PER_BLOCK = 256, 8


@dataclass(frozen=True, slots=True)
class ExpertLowRank:
    """Of one matrix of each expert, or of gate and up: A [experts, columns, in] and B [experts, out, columns] each,
    those of all places side by side, `rank` columns a place."""

    a: tuple[torch.Tensor, ...]
    b: tuple[torch.Tensor, ...]
    rank: int


@dataclass(frozen=True, slots=True)
class PassAdapters:
    """Whose tokens a pass has: slots [rows], of each row as many tokens; and the slots' adapters."""

    slots: torch.Tensor
    of_slots: SlotAdapters


class PairLowRank(ctypes.Structure):
    """PairLowRank of cuda/expert_low_rank.cuh. It holds addresses alone: whoever makes one keeps the tensors."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("b0", "b1", "t", "places")),
        *((name, ctypes.c_int) for name in ("outputs", "columns", "rank", "parts")),
    ]


@dataclass(frozen=True, slots=True)
class LowRankPairs:
    """What a product adds for its pairs: B t. t float32 [pairs, parts, rank], where each pair is in the products;
    places int32 [pairs]: below 0 of those without an adapter."""

    matrices: ExpertLowRank
    t: torch.Tensor
    places: torch.Tensor

    def argument(self) -> PairLowRank:
        """As the products take it."""
        first, columns, parts = self.matrices.b[0], self.matrices.b[0].shape[2], len(self.matrices.b)
        if parts > 1:
            second = self.matrices.b[1].data_ptr()
        else:
            # Of gate and up as one matrix, up's outputs are its second half. Down has no second.
            second = first.data_ptr() + first.shape[1] // 2 * columns * first.element_size()
        return PairLowRank(
            first.data_ptr(), second, self.t.data_ptr(), self.places.data_ptr(), first.shape[1], columns,
            self.matrices.rank, parts,
        )  # fmt: skip


class ExpertLowRankKernels:
    """The compiled kernels for one dtype on one GPU. Raises CudaCodeError."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        source = read_source("low_rank.cuh", "expert_low_rank.cu")
        module = CudaModule(source, {"BF16": int(dtype == torch.bfloat16)}, device)
        self._of_tokens, self._of_pairs = module.kernel("pairs_down_of_tokens"), module.kernel("pairs_down_of_pairs")

    def down(
        self,
        x: torch.Tensor,
        matrices: ExpertLowRank,
        ids: torch.Tensor,
        routed: RoutedPairs | None,
        adapters: PassAdapters,
        x_places: torch.Tensor | None = None,
        is_by_pair: bool = False,
    ) -> LowRankPairs:
        """A times x [tokens, inputs], or with `is_by_pair` [pairs, inputs] in the products' order; ids int64 [tokens,
        chosen]. The inputs are a multiple of 8. x_places [experts, inputs]: where each of the model's inputs lies in a
        row, None: in order."""
        (tokens, chosen), parts, device = ids.shape, len(matrices.a), x.device
        t = torch.empty((ids.numel(), parts, matrices.rank), dtype=torch.float32, device=device)
        places = torch.empty(ids.numel(), dtype=torch.int32, device=device)
        kernel, blocks = self._of_pairs if is_by_pair else self._of_tokens, -(-parts * matrices.rank // DOTS_PER_BLOCK)
        kernel(
            (ids.numel(), blocks, 1), THREADS, x, x.stride(0), x.shape[1], x_places,
            matrices.a[0], matrices.a[-1], parts, matrices.a[0].shape[1], matrices.rank, ids,
            None if routed is None else routed.positions, chosen, adapters.slots, tokens // adapters.slots.shape[0],
            adapters.of_slots.places, adapters.of_slots.weights, t, places,
        )  # fmt: skip
        return LowRankPairs(matrices, t, places)


@dataclass(frozen=True, slots=True)
class ExpertAdapters:
    """The adapters of a layer's experts. of_pass: what the pass that runs has of adapters, None for nothing."""

    gate_up: ExpertLowRank
    down: ExpertLowRank
    kernels: ExpertLowRankKernels
    of_pass: Callable[[], PassAdapters | None]


@cache
def expert_low_rank_kernels_for(dtype: torch.dtype, device: torch.device) -> ExpertLowRankKernels:
    return ExpertLowRankKernels(dtype, device)
