"""LlamaDeck's own kernels for matrices of 4 and 8 bit.

Each matrix is packed anew. Its codes come through one staging buffer, and what is not kept stays where it was read:
freed pieces between what stays would be lost to everything larger.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import nn

from core.checkpoint.quantization import MatrixFormat, QuantizedMatrix
from core.memory.kernels.spec import KernelSpec
from core.memory.matrix_groups import MatrixGroup
from core.memory.model_shape import MatrixShape
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
from core.worker.model.experts import ExpertTensors, GatedActivation, loop_experts
from core.worker.model.matrix_tensors import GroupTensors, MatrixTensors, SeparateTensors


class LlamadeckBackend:
    _staging: torch.Tensor
    # One for each way in which matrices of the model are quantized.
    _prefills: dict[tuple[object, ...], PrefillBackend]

    def __init__(self, spec: KernelSpec, dtype: torch.dtype, device: torch.device) -> None:
        self.spec, self.dtype, self.device = spec, dtype, device

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
        format = members[0].format
        dtype, code_format, device = self._variant(format)
        kernels = kernels_for(dtype, code_format, device)
        words = [one.codes for one in members]
        tiles = sum(word.shape[1] for word in words) // TILE
        shape = (tiles, members[0].in_features // K_BLOCK, code_format.pieces, 32, 4)
        codes = torch.empty(shape, dtype=torch.int32, device=device)
        scales = [tile_scales(one.scales.to(device), dtype) for one in members]
        zeros = self._zeros(members)
        permutation = find_permutation(members[0].input_groups)
        permutation = None if permutation is None else permutation.to(self.device)
        first_tile = 0
        for word in words:
            staged = self._staging[: word.numel()].view(word.shape).copy_(word)
            kernels.pack(staged, permutation, codes, first_tile)
            first_tile += word.shape[1] // TILE
        biases = [one.bias for one in members if one.bias is not None]
        bias = torch.cat(biases) if biases else None
        matrix = PackedMatrix(codes, torch.cat(scales), None if zeros is None else torch.cat(zeros), permutation)
        bias = None if bias is None else bias.to(self.device, self.dtype)
        return PackedLinear(matrix, bias, kernels, self._prefills[self._variant(format)])

    def make_experts(self, experts: Sequence[ExpertTensors], activation: GatedActivation) -> nn.Module:
        return loop_experts(experts, activation, self.make)

    def _zeros(self, members: Sequence[MatrixTensors]) -> list[torch.Tensor] | None:
        """Zero points as the kernels read them; None where all are in the middle."""
        if members[0].format.is_symmetric:
            return None
        bits = members[0].format.bits
        zeros = [unpack(one.zeros.to(self.device), 1, bits) for one in members if one.zeros is not None]
        return [tile_scales(one, self.dtype) for one in zeros]

    def _variant(self, format: MatrixFormat) -> tuple[torch.dtype, CodeFormat, torch.device]:
        """What the kernels are compiled for."""
        return self.dtype, CodeFormat(format.bits, format.group_size, not format.is_symmetric), self.device
