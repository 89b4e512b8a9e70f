"""Marlin, compiled by gptqmodel.

It packs each matrix anew. The codes come through one staging buffer, and what is not kept stays where it was read:
freed pieces between what stays would be lost to everything larger.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from gptqmodel.nn_modules.qlinear.marlin import MarlinLinear
from gptqmodel.utils.marlin import marlin_runtime_available, marlin_runtime_error
from torch import nn

from core.common.errors import EngineError
from core.memory.model_shape import MatrixShape
from core.worker.model.backends.gptqmodel import GptqmodelBackend
from core.worker.model.matrix_tensors import MatrixTensors
from core.worker.model.repack import middle_zeros


class MarlinBackend(GptqmodelBackend):
    linear_class = MarlinLinear
    _staging: torch.Tensor

    @property
    def reading_device(self) -> torch.device:
        return torch.device("cpu")

    def compile(self) -> None:
        if not marlin_runtime_available(self.dtype):
            why = marlin_runtime_error(self.dtype).splitlines()[0][:200]
            raise EngineError("kernel_compile", kernel=self.spec.name, why=why)

    def reserve(self, matrices: Collection[MatrixShape], max_rows: int) -> None:
        words = max(matrix.num_elements * matrix.format.bits // 32 for matrix in matrices)
        self._staging = torch.empty(words, dtype=torch.int32, device=self.device)

    def make(self, members: Sequence[MatrixTensors]) -> nn.Module:
        # Nothing but the module may hold what it replaces as it packs.
        module = self.build(self._staged(members[0]), self.dtype)
        module.post_init()
        return module

    def _staged(self, tensors: MatrixTensors) -> MatrixTensors:
        codes, zeros, groups, bias = tensors.codes, tensors.zeros, tensors.input_groups, tensors.bias
        if zeros is None:
            zeros = middle_zeros(tensors.format, tensors.scales.shape[0], tensors.out_features, codes.device)
        return MatrixTensors(
            tensors.format,
            self._staging[: codes.numel()].view(codes.shape).copy_(codes),
            zeros,
            tensors.scales.to(self.device),
            groups.to(self.device) if groups is not None and tensors.format.is_permuted else groups,
            None if bias is None else bias.to(self.device),
        )
