"""What only the values of a checkpoint's tensors tell: its zero points' version, the order of each matrix's inputs, and
whether a tied model's head is its embedding.

A configuration says what was asked for. Programs have written version 2 under the name of version 1, an order of inputs
beside `desc_act: false`, and a head of its own into a model that ties it. So the tensors decide, once for every kernel.
About a hundredth of the files is read.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from core.checkpoint.checkpoint import Checkpoint, SettledTensors
from core.checkpoint.headers import TensorInfo, unreadable
from core.checkpoint.quantization import QuantizedMatrix
from core.checkpoint.tied_head import has_own_head, says_tied, tied_pairs
from core.checkpoint.zeros import StoredZeros, look_at_zeros, settle_zeros, stored_version
from core.common.errors import CheckpointError

INDEX_TYPES = {"I32": "<i4", "I64": "<i8"}
COMPARED_BYTES = 1 << 24


class _Files:
    """The bytes of a checkpoint's tensors, mapped: only what is looked at is read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._mapped: dict[str, np.ndarray] = {}

    def bytes_of(self, info: TensorInfo) -> np.ndarray:
        if info.file not in self._mapped:
            path = self._checkpoint.folder / info.file
            try:
                self._mapped[info.file] = np.memmap(path, np.uint8, "r")
            except OSError as error:
                raise unreadable(path, error) from error
        return self._mapped[info.file][info.begin : info.end]

    def type_of(self, name: str) -> str:
        return self._checkpoint.tensors[name].dtype

    def values_of(self, name: str, dtype: str) -> np.ndarray:
        info = self._checkpoint.tensors[name]
        return self.bytes_of(info).view(dtype).reshape(info.shape)


def settle(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` with its matrices as their tensors are. Raises CheckpointError for an order that is none."""
    files, stated = _Files(checkpoint), checkpoint.quantization
    stored = {name: _look_at_zeros(matrix, files) for name, matrix in checkpoint.matrices.items()}
    version = stored_version([one for one in stored.values() if one is not None])
    orders: dict[bytes, str] = {}
    matrices: dict[str, QuantizedMatrix] = {}
    for name, matrix in checkpoint.matrices.items():
        order = _read_order(checkpoint, matrix, files, orders)
        format = settle_zeros(matrix.format, stored[name], version)
        matrices[name] = replace(matrix, format=replace(format, is_permuted=bool(order)), input_order=order)
    pairs = tied_pairs(checkpoint.config, checkpoint.tensors)
    repeated = frozenset(head for head, embedding in pairs if _are_equal(checkpoint, files, head, embedding))
    has_head = has_own_head(checkpoint.tensors, matrices, repeated)
    notes = ["own_head"] if has_head and says_tied(checkpoint.config) else []
    if any((one.format.packing == "gptq_v2") != (stated.packing == "gptq_v2") for one in matrices.values()):
        notes.append("zeros_version")
    return replace(checkpoint, repeated=repeated, settled=SettledTensors(matrices, tuple(notes)))


def _look_at_zeros(matrix: QuantizedMatrix, files: _Files) -> StoredZeros | None:
    name = matrix.tensors.get("zeros")
    if name is None:
        return None
    if files.type_of(name) == "I8":
        values = files.values_of(name, "i1")
        return StoredZeros(values.size, are_middle=not values.any(), are_one_less=False)
    words = files.values_of(name, "<u4")
    words = words.T if matrix.format.packing == "pack_quantized" else words
    return look_at_zeros(words, matrix.out_features, matrix.format.bits)


def _read_order(checkpoint: Checkpoint, matrix: QuantizedMatrix, files: _Files, orders: dict[bytes, str]) -> str:
    """The name of the first matrix whose inputs come in the order of this one's, or "" for the model's own order."""
    name = matrix.tensors.get("input_groups")
    if name is None:
        return ""
    groups = files.values_of(name, INDEX_TYPES[files.type_of(name)])
    if not _are_groups(groups, matrix):
        raise CheckpointError("input_groups", folder=checkpoint.name, tensor=name)
    if (groups[1:] >= groups[:-1]).all():
        return ""
    return orders.setdefault(hashlib.blake2b(groups.astype("<i4").tobytes()).digest(), matrix.name)


def _are_groups(groups: np.ndarray, matrix: QuantizedMatrix) -> bool:
    """Whether every group has as many inputs as the others; the last may have fewer."""
    count = matrix.num_groups
    if groups.size == 0 or groups.min() < 0 or groups.max() >= count:
        return False
    sizes = np.bincount(groups, minlength=count)
    return bool((sizes[:-1] == sizes[0]).all() and sizes[-1] <= sizes[0])


def _are_equal(checkpoint: Checkpoint, files: _Files, head: str, embedding: str) -> bool:
    one, other = (files.bytes_of(checkpoint.tensors[name]) for name in (head, embedding))
    steps = range(0, one.size, COMPARED_BYTES)
    return all(np.array_equal(one[at : at + COMPARED_BYTES], other[at : at + COMPARED_BYTES]) for at in steps)
