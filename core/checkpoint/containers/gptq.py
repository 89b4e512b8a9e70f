"""GPTQ as auto-gptq and gptqmodel write it.

A matrix of [in, out] features at b bits, with G scale groups along its inputs, has qweight int32 [in * b / 32, out],
qzeros int32 [G, out * b / 32], scales [G, out], and perhaps g_idx int32 [in] and bias [out].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from core.checkpoint.headers import TensorInfo
from core.checkpoint.layers import contradiction
from core.checkpoint.quantization import BITS, MatrixFormat, Packing, Part, QuantizedMatrix
from core.common.errors import CheckpointError
from core.common.values import is_whole, quoted_json

CODES = ".qweight"
ENDINGS: dict[Part, str] = {
    "codes": CODES,
    "zeros": ".qzeros",
    "scales": ".scales",
    "input_groups": ".g_idx",
    "bias": ".bias",
}


class GptqContainer:
    packings: tuple[Packing, ...] = ("gptq", "gptq_v2")

    def accepts(self, found: Mapping[str, Any]) -> bool:
        """A configuration that names no method is auto-gptq's older one."""
        return quoted_json(found.get("quant_method") or "gptq").lower() == "gptq"

    def read_format(self, model: str, found: Mapping[str, Any]) -> MatrixFormat:
        bits, group_size = found.get("bits"), found.get("group_size", -1)
        if not is_whole(bits) or bits not in BITS:
            raise CheckpointError("bits", folder=model, bits=quoted_json(bits))
        if not is_whole(group_size) or not (group_size == -1 or group_size > 0):
            raise CheckpointError("group_size", folder=model, group_size=quoted_json(group_size))
        named = quoted_json(found.get("checkpoint_format") or found.get("format") or "gptq").lower()
        packing = next((one for one in self.packings if one == named), None)
        if packing is None:
            raise CheckpointError("format", folder=model, format=named)
        return MatrixFormat(
            bits=bits,
            group_size=group_size,
            is_permuted=bool(found.get("desc_act", False)),
            # Anything but true: there are kernels that take both, and one that computes nonsense for the asymmetric.
            is_symmetric=found.get("sym", True) is True,
            packing=packing,
        )

    def read(self, model: str, format: MatrixFormat, tensors: Mapping[str, TensorInfo]) -> dict[str, QuantizedMatrix]:
        names = [name.removesuffix(CODES) for name in tensors if name.endswith(CODES)]
        return {name: _read_matrix(model, name, format, tensors) for name in names}


def _read_matrix(model: str, name: str, format: MatrixFormat, tensors: Mapping[str, TensorInfo]) -> QuantizedMatrix:
    shape = tensors[name + CODES].shape
    if len(shape) != 2:
        raise CheckpointError("no_matrix", folder=model, name=name + CODES, shape=str(list(shape)))
    parts = {part: name + ending for part, ending in ENDINGS.items() if name + ending in tensors}
    matrix = QuantizedMatrix(name, shape[0] * 32 // format.bits, shape[1], format, parts)
    _check_shapes(model, matrix, tensors)
    return matrix


def _check_shapes(model: str, matrix: QuantizedMatrix, tensors: Mapping[str, TensorInfo]) -> None:
    """Raise CheckpointError where a tensor of `matrix` has another shape than its bits and group size make.

    g_idx tells the bits, scales the group size, qzeros both.
    """
    format, columns, groups = matrix.format, matrix.out_features, matrix.num_groups
    wanted: tuple[tuple[Part, str, int, tuple[int, ...]], ...] = (
        ("input_groups", "bits", format.bits, (matrix.in_features,)),
        ("scales", "group_size", format.group_size, (groups, columns)),
        ("zeros", "bits", format.bits, (groups, math.ceil(columns * format.bits / 32))),
    )
    for part, key, value, shape in wanted:
        name = matrix.tensors.get(part)
        if name is not None and tensors[name].shape != shape:
            raise contradiction(model, key, value, name, tensors[name])
