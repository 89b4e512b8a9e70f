"""LlamaDeck's own kernels for matrices of 4 and 8 bit.

Each matrix is packed anew. Its codes come through one staging buffer, and what is not kept stays where it was read:
freed pieces between what stays would be lost to everything larger.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeGuard

import torch
from torch import nn

from core.checkpoint.quantization import MatrixFormat, QuantizedMatrix
from core.memory.kernels.llamadeck import has_fused_prefill
from core.memory.kernels.spec import KernelSpec
from core.memory.matrix_groups import MatrixGroup
from core.memory.model_shape import MatrixShape
from core.worker.kernels.expert_kernels import StackedMatrix, expert_kernels_for
from core.worker.kernels.expert_prompts import ExpertPrompts, SharedRoom
from core.worker.kernels.packed_experts import PackedExperts
from core.worker.kernels.packed_prefill import make_prefill_backend
from core.worker.kernels.packed_small_batch import PackedLinear, PrefillBackend, kernels_for
from core.worker.kernels.packing import (
    K_BLOCK,
    TILE,
    CodeFormat,
    PackedMatrix,
    find_permutation,
    tile_scales,
    unpack,
)
from core.worker.kernels.routed_pairs import MAX_EXPERTS, pair_kernels_for
from core.worker.model.experts import ExpertMatrix, ExpertTensors, GatedActivation, loop_experts
from core.worker.model.matrix_tensors import GroupTensors, MatrixTensors, SeparateTensors


class LlamadeckBackend:
    _staging: torch.Tensor
    # One for each way in which matrices of the model are quantized.
    _prefills: dict[tuple[object, ...], PrefillBackend]

    def __init__(self, spec: KernelSpec, dtype: torch.dtype, device: torch.device) -> None:
        self.spec, self.dtype, self.device = spec, dtype, device
        self._prompt_room = SharedRoom()

    @property
    def reading_device(self) -> torch.device:
        return torch.device("cpu")

    def reserve(self, matrices: Collection[MatrixShape], max_rows: int) -> None:
        words = max(matrix.num_elements * matrix.format.bits // 32 for matrix in matrices)
        self._staging = torch.empty(words, dtype=torch.int32, device=self.device)
        largest = max(matrix.num_elements for matrix in matrices)
        variants = {self._variant(matrix.format) for matrix in matrices}
        self._prefills = {variant: make_prefill_backend(largest, *variant) for variant in variants}

    def collect(self, group: MatrixGroup, members: Sequence[QuantizedMatrix]) -> GroupTensors:
        return SeparateTensors(members)

    def make(self, members: Sequence[MatrixTensors]) -> nn.Module:
        variant = self._variant(members[0].format)
        codes = torch.empty(self._codes_shape(members), dtype=torch.int32, device=self.device)
        permutation = self._permutation(members)
        self._pack(members, permutation, codes)
        biases = [one.bias for one in members if one.bias is not None]
        bias = torch.cat(biases) if biases else None
        matrix = PackedMatrix(codes, self._scales(members), self._zeros(members), permutation)
        bias = None if bias is None else bias.to(self.device, self.dtype)
        return PackedLinear(matrix, bias, kernels_for(*variant), self._prefills[variant])

    def make_experts(self, experts: Sequence[ExpertTensors], activation: GatedActivation) -> nn.Module:
        gate_ups, downs = [one.inputs[0] for one in experts], [one.down for one in experts]
        is_merged = all(len(one.inputs) == 1 for one in experts)
        if activation.kind != "silu" or not is_merged or not are_alike(gate_ups) or not are_alike(downs):
            return loop_experts(experts, activation, self.make)
        stacks = self._stack(gate_ups), self._stack(downs)
        gate_up, down = (self._variant(some[0][0].format) for some in (gate_ups, downs))
        kernels = expert_kernels_for(*gate_up), expert_kernels_for(*down)
        prompts = None
        if has_fused_prefill(torch.cuda.get_device_capability(self.device)):
            prompts = ExpertPrompts(self.dtype, (gate_up[1], down[1]), self.device, self._prompt_room)
        return PackedExperts(*stacks, kernels, pair_kernels_for(self.dtype, self.device), prompts)

    def _stack(self, matrices: Sequence[Sequence[MatrixTensors]]) -> StackedMatrix:
        """One matrix of every expert, in the order of the experts."""
        first, count = matrices[0], len(matrices)
        codes = torch.empty((count, *self._codes_shape(first)), dtype=torch.int32, device=self.device)
        shape = self._scales(first).shape
        scales = torch.empty((count, *shape), dtype=self.dtype, device=self.device)
        zeros = None if first[0].format.is_symmetric else torch.empty_like(scales)
        orders = [self._permutation(members) for members in matrices]
        permutations = None
        if any(order is not None for order in orders):
            permutations = torch.arange(first[0].in_features, dtype=torch.int32, device=self.device).repeat(count, 1)
        for number, (members, order) in enumerate(zip(matrices, orders, strict=True)):
            self._pack(members, order, codes[number])
            scales[number] = self._scales(members)
            own_zeros = self._zeros(members)
            if zeros is not None and own_zeros is not None:
                zeros[number] = own_zeros
            if permutations is not None and order is not None:
                permutations[number] = order
        return StackedMatrix(codes, scales, zeros, permutations)

    def _codes_shape(self, members: Sequence[MatrixTensors]) -> tuple[int, ...]:
        """Of the codes of `members` side by side, as packing.py has them."""
        _, format, _ = self._variant(members[0].format)
        tiles = sum(one.out_features for one in members) // TILE
        return tiles, members[0].in_features // K_BLOCK, format.pieces, 32, 4

    def _permutation(self, members: Sequence[MatrixTensors]) -> torch.Tensor | None:
        permutation = find_permutation(members[0].input_groups)
        return None if permutation is None else permutation.to(self.device)

    def _pack(self, members: Sequence[MatrixTensors], permutation: torch.Tensor | None, codes: torch.Tensor) -> None:
        """The codes of `members`, side by side, into `codes`."""
        kernels, first_tile = kernels_for(*self._variant(members[0].format)), 0
        for word in (one.codes for one in members):
            staged = self._staging[: word.numel()].view(word.shape).copy_(word)
            kernels.pack(staged, permutation, codes, first_tile)
            first_tile += word.shape[1] // TILE

    def _scales(self, members: Sequence[MatrixTensors]) -> torch.Tensor:
        return torch.cat([tile_scales(one.scales.to(self.device), self.dtype) for one in members])

    def _zeros(self, members: Sequence[MatrixTensors]) -> torch.Tensor | None:
        """Zero points as the kernels read them; None where all are in the middle."""
        if members[0].format.is_symmetric:
            return None
        bits = members[0].format.bits
        zeros = [unpack(one.zeros.to(self.device), 1, bits) for one in members if one.zeros is not None]
        return torch.cat([tile_scales(one, self.dtype) for one in zeros])

    def _variant(self, format: MatrixFormat) -> tuple[torch.dtype, CodeFormat, torch.device]:
        """What the kernels are compiled for."""
        return self.dtype, CodeFormat(format.bits, format.group_size, not format.is_symmetric), self.device


def are_alike(matrices: Sequence[ExpertMatrix]) -> TypeGuard[Sequence[Sequence[MatrixTensors]]]:
    """Whether one matrix of every expert can be stacked: all are quantized in one way, of one size, and add no bias."""

    def kind(members: Sequence[MatrixTensors]) -> tuple[object, ...]:
        format = members[0].format
        sizes = tuple((one.in_features, one.out_features) for one in members)
        return format.bits, format.group_size, format.is_symmetric, sizes

    if len(matrices) > MAX_EXPERTS or any(isinstance(one, nn.Linear) for one in matrices):
        return False
    quantized = [one for one in matrices if not isinstance(one, nn.Linear)]
    has_bias = any(member.bias is not None for members in quantized for member in members)
    return not has_bias and len({kind(members) for members in quantized}) == 1
