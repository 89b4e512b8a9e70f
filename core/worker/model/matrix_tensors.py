"""The tensors of one quantized matrix in neutral form, whatever packed it, and of matrices that are kept as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from core.checkpoint.quantization import MatrixFormat, Part, QuantizedMatrix
from core.memory.matrix_groups import MatrixGroup

Parts = dict[Part, torch.Tensor]


@dataclass(slots=True)
class MatrixTensors:
    """One matrix, or several side by side, as core/worker/model/repack.py makes them of a file's.

    codes: int32 [in * bits / 32, out], a stream of bits down each column, lowest first. zeros: int32 [groups, out *
    bits / 32], the zero points themselves along each row; None where a file has none, as all are 2 ** (bits - 1).
    scales: half precision [groups, out]. input_groups: int32 [in], None where in order. bias: [out].
    """

    format: MatrixFormat
    codes: torch.Tensor
    zeros: torch.Tensor | None
    scales: torch.Tensor
    input_groups: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    @classmethod
    def from_parts(cls, format: MatrixFormat, parts: Mapping[Part, torch.Tensor]) -> MatrixTensors:
        """The matrix of `parts`, each in neutral form."""
        return cls(
            format, parts["codes"], parts.get("zeros"), parts["scales"], parts.get("input_groups"), parts.get("bias")
        )

    def to(self, device: torch.device) -> MatrixTensors:
        """The same on `device`."""
        tensors = (self.codes, self.zeros, self.scales, self.input_groups, self.bias)
        return MatrixTensors(self.format, *(one if one is None else one.to(device) for one in tensors))

    @property
    def in_features(self) -> int:
        return int(self.codes.shape[0]) * 32 // self.format.bits

    @property
    def out_features(self) -> int:
        return int(self.codes.shape[1])


class GroupTensors(Protocol):
    """Takes the tensors of matrices that become one module, as they are read."""

    def put(self, member: str, part: Part, tensor: torch.Tensor) -> bool:
        """Take one member's `part`; True when that was the last one missing."""

    def members(self) -> list[MatrixTensors]:
        """One where they were put side by side."""


class SeparateTensors:
    """Members apart, for a kernel that puts them side by side itself, and for a matrix that is alone."""

    def __init__(self, matrices: Iterable[QuantizedMatrix]) -> None:
        self._matrices = {matrix.name: matrix for matrix in matrices}
        self._parts: dict[str, Parts] = {name: {} for name in self._matrices}

    def put(self, member: str, part: Part, tensor: torch.Tensor) -> bool:
        self._parts[member][part] = tensor
        return all(len(self._parts[name]) == matrix.num_parts for name, matrix in self._matrices.items())

    def members(self) -> list[MatrixTensors]:
        return [MatrixTensors.from_parts(self._matrices[name].format, parts) for name, parts in self._parts.items()]


class ConcatenatedTensors:
    """Members put side by side as they are read."""

    def __init__(self, group: MatrixGroup, format: MatrixFormat) -> None:
        self._group, self._format = group, format
        self._missing = group.num_parts
        self._parts: Parts = {}

    def put(self, member: str, part: Part, tensor: torch.Tensor) -> bool:
        begin, size, whole = self._group.begins[member], self._group.sizes[member], self._group.out_features
        if part == "input_groups":
            self._parts.setdefault(part, tensor)
        else:
            # Zeros of several outputs share a word, so their columns are fewer by the same factor.
            scale = tensor.shape[-1] / size
            shape = (*tensor.shape[:-1], round(whole * scale))
            if part not in self._parts:
                self._parts[part] = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
            at = round(begin * scale)
            self._parts[part][..., at : at + tensor.shape[-1]].copy_(tensor)
        self._missing -= 1
        return self._missing == 0

    def members(self) -> list[MatrixTensors]:
        return [MatrixTensors.from_parts(self._format, self._parts)]


def drop_zero_bias(members: list[MatrixTensors]) -> None:
    """auto-gptq wrote a bias of zeros for every matrix, also of models that have none; adding it costs a kernel."""
    if not any(member.bias is not None and bool(member.bias.any()) for member in members):
        for member in members:
            member.bias = None
