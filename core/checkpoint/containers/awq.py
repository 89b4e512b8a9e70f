"""AWQ in the layout "gemm", as AutoAWQ, gptqmodel and AutoRound write it.

A matrix of [in, out] features at 4 bits, with G scale groups along its inputs, has qweight int32 [in, out / 8], qzeros
int32 [G, out / 8], scales [G, out], and perhaps bias [out]. A word's outputs are in an order of their own
(core/worker/model/repack.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from core.checkpoint.containers.shapes import (
    group_size_of,
    matrix_names,
    parts_of,
    refuse_contradiction,
    stated_group_size,
)
from core.checkpoint.headers import TensorInfo
from core.checkpoint.quantization import MatrixFormat, Packing, Part, QuantizedMatrix
from core.common.errors import CheckpointError
from core.common.values import quoted_json

PER_WORD = 8
# The others are ways to run what is stored as "gemm".
GEMM_NAMES = ("gemm", "exllama", "ipex")


class AwqContainer:
    packings: tuple[Packing, ...] = ("awq",)
    endings: Mapping[Part, str] = {"codes": ".qweight", "zeros": ".qzeros", "scales": ".scales", "bias": ".bias"}
    required: tuple[Part, ...] = ("codes", "zeros", "scales")

    def accepts(self, found: Mapping[str, Any]) -> bool:
        """AutoAWQ's own quant_config.json names no method, but its numbers in its own way."""
        method = quoted_json(found.get("quant_method") or found.get("method") or "").lower()
        return method == "awq" or (method == "" and "w_bit" in found)

    def read_format(self, model: str, found: Mapping[str, Any]) -> MatrixFormat:
        version = found.get("version") or found.get("format") or found.get("checkpoint_format") or "gemm"
        layout = quoted_json(version).lower()
        if layout not in GEMM_NAMES:
            raise CheckpointError("awq_layout", folder=model, layout=layout)
        bits = found.get("bits", found.get("w_bit"))
        if bits != 4:
            raise CheckpointError("awq_bits", folder=model, bits=quoted_json(bits))
        group_size = stated_group_size(model, found.get("group_size", found.get("q_group_size", 128)))
        return MatrixFormat(4, group_size, is_permuted=False, is_symmetric=False, packing="awq")

    def read(self, model: str, format: MatrixFormat, tensors: Mapping[str, TensorInfo]) -> dict[str, QuantizedMatrix]:
        names = matrix_names(self.endings["codes"], tensors)
        return {name: self._read_matrix(model, name, format, tensors) for name in names}

    def _read_matrix(
        self, model: str, name: str, format: MatrixFormat, tensors: Mapping[str, TensorInfo]
    ) -> QuantizedMatrix:
        parts = parts_of(model, name, self.endings, tensors)
        shape = tensors[parts["codes"]].shape
        in_features, out_features = shape[0], shape[1] * PER_WORD
        scales = tensors[parts["scales"]].shape if "scales" in parts else None
        group_size = group_size_of(format.group_size, in_features, scales)
        matrix = QuantizedMatrix(name, in_features, out_features, replace(format, group_size=group_size), parts)
        if scales is not None and scales[1:] != (out_features,):
            # So does AutoAWQ's "gemv", whose codes are [out, in / 8].
            raise CheckpointError("awq_layout", folder=model, layout=f"scales {list(scales)}")
        groups = matrix.num_groups
        refuse_contradiction(model, matrix, "scales", (groups, out_features), "group_size", format.group_size, tensors)
        refuse_contradiction(model, matrix, "zeros", (groups, shape[1]), "group_size", format.group_size, tensors)
        return matrix
