"""The experts of one layer, from their codes.

Few pairs of a token and an expert are multiplied as they come; many are sorted by expert on the GPU first. Those of a
prompt go through the tensor cores in tiles, where the GPU has those of compute capability 9.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from core.memory.sizes import FLOAT_BYTES
from core.worker.kernels.expert_kernels import ExpertKernels, StackedMatrix
from core.worker.kernels.expert_low_rank import ExpertAdapters, PassAdapters
from core.worker.kernels.expert_prompts import ExpertPromptKernels, ExpertPrompts, SharedRoom
from core.worker.kernels.packed_small_batch import MAX_SMALL_BATCH
from core.worker.kernels.packing import invert_permutation
from core.worker.kernels.routed_pairs import Added, PairKernels, is_worth_sorting, rows_per_segment

NOTHING_ADDED = Added()


class PairRoom(NamedTuple):
    """Room for pairs of a token and an expert. results: float32 [pairs, hidden]. gated [pairs, intermediate]. gathered:
    [pairs, hidden] where inputs have an order of their own, else [0, hidden]."""

    results: torch.Tensor
    gated: torch.Tensor
    gathered: torch.Tensor


class PackedExperts(nn.Module):
    """gate_up: gate's outputs, then up's. down: its inputs are silu(gate) * up. kernels: of each one's format."""

    def __init__(
        self,
        gate_up: StackedMatrix,
        down: StackedMatrix,
        kernels: tuple[ExpertKernels, ExpertKernels],
        pair_kernels: PairKernels,
        prompts: ExpertPrompts | None = None,
    ) -> None:
        """prompts: for the many rows of a prompt, where the GPU can."""
        super().__init__()
        self.gate_up, self.down = gate_up, down
        self._gate_up_kernels, self._down_kernels = kernels
        self._pair_kernels, self._prompts = pair_kernels, prompts
        self._adapters: ExpertAdapters | None = None
        self._down_inverse = None
        if down.permutations is not None:
            self._down_inverse = torch.stack([invert_permutation(one) for one in down.permutations])

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden_states [tokens, hidden], the chosen experts and their weights [tokens, k] -> [tokens, hidden].

        Up to MAX_SMALL_BATCH tokens, a token's result depends on that token alone.
        """
        ids, weights = top_k_index.long().contiguous(), top_k_weights.float().contiguous()
        return self.multiply(hidden_states, ids, weights, is_step=len(ids) <= MAX_SMALL_BATCH)

    def adapt(self, adapters: ExpertAdapters) -> None:
        """Let the products of passes with adapters add what these are."""
        self._adapters = adapters
        self._adding_kernels = self._gate_up_kernels.with_adapters(), self._down_kernels.with_adapters()

    def drop_room(self) -> None:
        """Free what captured steps that failed have left."""
        if self._prompts is not None:
            self._prompts.room.drop()

    def multiply(
        self,
        x: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
        added: Added = NOTHING_ADDED,
        is_step: bool = False,
    ) -> torch.Tensor:
        """x [tokens, hidden]; ids int64 and weights float32 [tokens, k] -> the weighted sum of the chosen experts'
        results and what is `added`, [tokens, hidden]. is_step: the tokens are of a chat each, and go through no tiles,
        which sum in another order: a token's result then depends on that token alone."""
        (tokens, chosen), num_experts, pairs = ids.shape, self.gate_up.num_experts, self._pair_kernels
        if self._adapters is not None and (of_pass := self._adapters.of_pass()) is not None:
            return self._multiply_adapted(self._adapters, of_pass, x, ids, weights, added)
        prompts = self._prompts.kernels(ids.numel(), num_experts) if self._prompts and not is_step else None
        if prompts is not None:
            return self._multiply_tiles(prompts, x, ids, weights, added)
        out = torch.empty_like(x)
        is_sorted = is_worth_sorting(tokens, chosen, num_experts)
        rows = rows_per_segment(tokens, chosen, num_experts) if is_sorted else 1
        routed = pairs.sort(ids, num_experts, rows) if is_sorted else None
        if self.gate_up.permutations is not None:
            x = pairs.gather(x, ids, self.gate_up.permutations, routed.positions if routed else None)
        gated = self._gate_up_kernels.gate_up(self.gate_up, x, ids, routed, rows, self._down_inverse)
        if routed is None:
            return self._down_kernels.down(self.down, gated, ids, weights, out, added)
        of_pairs = self._down_kernels.down_segments(self.down, gated, routed, rows, chosen)
        return pairs.sum(of_pairs, weights, routed.positions, out, added)

    def _multiply_adapted(
        self,
        adapters: ExpertAdapters,
        of_pass: PassAdapters,
        x: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
        added: Added,
    ) -> torch.Tensor:
        """As `multiply` for a pass with adapters: tiles add nothing, so that it goes through none."""
        (tokens, chosen), num_experts = ids.shape, self.gate_up.num_experts
        pairs, (gate_up, down) = self._pair_kernels, self._adding_kernels
        is_sorted = is_worth_sorting(tokens, chosen, num_experts)
        rows = rows_per_segment(tokens, chosen, num_experts) if is_sorted else 1
        routed = pairs.sort(ids, num_experts, rows) if is_sorted else None
        positions = None if routed is None else routed.positions
        low = adapters.kernels.down(x, adapters.gate_up, ids, routed, of_pass)
        out, room = torch.empty_like(x), self._pair_room(x, ids.numel())
        if self.gate_up.permutations is not None:
            x = pairs.gather(x, ids, self.gate_up.permutations, positions, room.gathered)
        gated = gate_up.gate_up(self.gate_up, x, ids, routed, rows, self._down_inverse, low, room.gated)
        low = adapters.kernels.down(gated, adapters.down, ids, routed, of_pass, self._down_inverse, is_by_pair=True)
        if routed is None:
            return down.down(self.down, gated, ids, weights, out, added, low)
        of_pairs = down.down_segments(self.down, gated, routed, rows, chosen, low, room.results)
        return pairs.sum(of_pairs, weights, routed.positions, out, added)

    def _pair_room(self, x: torch.Tensor, num_pairs: int) -> PairRoom:
        """For the products of a pass with adapters, in the buffer that all layers share where there is one."""
        hidden, intermediate, half = self.gate_up.inputs, self.gate_up.outputs // 2, x.dtype.itemsize
        gathered = num_pairs * hidden * half if self.gate_up.permutations is not None else 0
        gated, results = num_pairs * intermediate * half, num_pairs * hidden * FLOAT_BYTES
        shared = self._prompts.room if self._prompts is not None else SharedRoom()
        # What is read 16 bytes at once lies so: sizes are multiples of 64.
        parts = shared.take(results + gated + gathered, x.device).split((results, gated, gathered))
        return PairRoom(
            parts[0].view(torch.float32).view(num_pairs, hidden),
            parts[1].view(x.dtype).view(num_pairs, intermediate),
            parts[2].view(x.dtype).view(-1, hidden),
        )

    def _multiply_tiles(
        self,
        kernels: Sequence[ExpertPromptKernels],
        x: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
        added: Added,
    ) -> torch.Tensor:
        assert self._prompts is not None
        gate_up, down = kernels
        routed = self._pair_kernels.sort(ids, self.gate_up.num_experts, gate_up.tile_rows)
        room = gate_up.room(self.gate_up, x, routed, self._prompts.room)
        gate_up.swizzle(self.gate_up, x, routed, room.rows)
        gate_up.gate_up(self.gate_up, room.rows, routed, self._down_inverse, room.gated)
        down.down(self.down, room.gated, routed, room.of_pairs)
        return self._pair_kernels.sum(room.of_pairs, weights, routed.positions, torch.empty_like(x), added)
