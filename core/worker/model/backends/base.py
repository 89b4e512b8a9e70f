"""A matrix kernel in the worker: what it keeps beside the weights, one module a matrix."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import torch
from torch import nn

from core.checkpoint.quantization import QuantizedMatrix
from core.memory.kernels.spec import KernelSpec
from core.memory.matrix_groups import MatrixGroup
from core.memory.model_shape import MatrixShape
from core.worker.model.experts import ExpertTensors, GatedActivation
from core.worker.model.matrix_tensors import GroupTensors, MatrixTensors


class KernelBackend(Protocol):
    """One kernel on one device. Used by the worker's main thread alone."""

    spec: KernelSpec
    device: torch.device
    dtype: torch.dtype

    @property
    def reading_device(self) -> torch.device:
        """Where a matrix's tensors are read to, before `make`."""

    def reserve(self, matrices: Collection[MatrixShape], max_rows: int) -> None:
        """Allocate all that the kernel needs beside the weights, once, before the first `make`."""

    def collect(self, group: MatrixGroup, members: Sequence[QuantizedMatrix]) -> GroupTensors:
        """What takes the tensors of `members`, which are kept as one, as they are read."""

    def make(self, members: Sequence[MatrixTensors]) -> nn.Module:
        """A module [..., in] -> [..., sum of outs], the outputs of `members` side by side."""

    def make_experts(self, experts: Sequence[ExpertTensors], activation: GatedActivation) -> nn.Module:
        """A module (hidden [tokens, hidden], chosen experts [tokens, k], their weights [tokens, k]) -> [tokens, hidden]
        with all `experts` of a layer, in the order of their numbers.

        Where the kernel has none of its own: `loop_experts`, which runs one after the other.
        """
