"""compressed-tensors, weights of 2, 3, 4 or 8 bit alone, in the format "pack-quantized".

A matrix of [in, out] features at b bits, with G scale groups along its inputs, has weight_packed int32 [out, in * b /
32], weight_scale [out, G], weight_shape [2] (out, in), where it is asymmetric weight_zero_point int32 [out * b / 32,
G], and in act-order weight_g_idx int32 [in]. Older releases stored zero points as int8 [out, G], less 2 ** (b - 1); of
3 bit they put ten codes into a word, which is not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from core.checkpoint.containers.shapes import (
    group_size_of,
    matrix_names,
    parts_of,
    refuse_contradiction,
    settings_of,
    stated_group_size,
)
from core.checkpoint.headers import TensorInfo
from core.checkpoint.quantization import BITS, MatrixFormat, Packing, Part, QuantizedMatrix
from core.common.errors import CheckpointError
from core.common.values import quoted_json

METHODS = ("compressed-tensors", "compressed_tensors")
FORMAT = "pack-quantized"
# What a configuration calls a format that may differ from group to group.
MIXED_FORMAT = "mixed-precision"


class CompressedTensorsContainer:
    packings: tuple[Packing, ...] = ("pack_quantized",)
    endings: Mapping[Part, str] = {
        "codes": ".weight_packed",
        "zeros": ".weight_zero_point",
        "scales": ".weight_scale",
        "input_groups": ".weight_g_idx",
        "shape": ".weight_shape",
        "bias": ".bias",
    }
    required: tuple[Part, ...] = ("codes", "scales")

    def accepts(self, found: Mapping[str, Any]) -> bool:
        method = found.get("quant_method") or ("compressed-tensors" if "config_groups" in found else "")
        return quoted_json(method).lower() in METHODS

    def read_format(self, model: str, found: Mapping[str, Any]) -> MatrixFormat:
        groups = settings_of(found.get("config_groups"))
        whole = found.get("format")
        named = {whole, *(group.get("format") or whole for group in groups)} - {None}
        if whole == MIXED_FORMAT:
            named.discard(whole)
        _refuse_other_formats(model, sorted(map(quoted_json, named)), groups)
        # A kv_cache_scheme is for servers that keep keys and values in 8 bit; the weights do not depend on it.
        for key in ("transform_config", "sparsity_config"):
            if (value := found.get(key)) and not _says_nothing(value):
                raise CheckpointError("compressed_setting", folder=model, setting=key)
        weights = [group["weights"] for group in groups if isinstance(group.get("weights"), dict)]
        formats = [_read_weights(model, one) for one in weights]
        if not formats:
            raise CheckpointError("compressed_setting", folder=model, setting="config_groups")
        is_symmetric = all(format.is_symmetric for format in formats)
        return replace(formats[0], is_symmetric=is_symmetric, is_permuted=any(format.is_permuted for format in formats))

    def read(self, model: str, format: MatrixFormat, tensors: Mapping[str, TensorInfo]) -> dict[str, QuantizedMatrix]:
        names = matrix_names(self.endings["codes"], tensors)
        return {name: self._read_matrix(model, name, format, tensors) for name in names}

    def _read_matrix(
        self, model: str, name: str, format: MatrixFormat, tensors: Mapping[str, TensorInfo]
    ) -> QuantizedMatrix:
        parts = parts_of(model, name, self.endings, tensors)
        shapes = {part: tensors[stored].shape for part, stored in parts.items()}
        out_features, words = shapes["codes"]
        bits = next(_possible_bits(format, shapes), format.bits)
        if bits == 3 and words % 3:
            raise CheckpointError("compressed_setting", folder=model, setting="num_bits 3, ten in a word")
        scales = shapes.get("scales", ())
        in_features = words * 32 // bits
        if (order := shapes.get("input_groups")) is not None:
            in_features = order[0] if order else 0
        elif format.group_size > 0 and scales[1:] and words == math.ceil(format.group_size * scales[1] * bits / 32):
            in_features = format.group_size * scales[1]
        if in_features * bits % 32:
            raise CheckpointError("padded_inputs", folder=model, name=parts["codes"], inputs=in_features)
        groups = scales[1] if scales[1:] else 1
        group_size = group_size_of(format.group_size, in_features, (groups, out_features))
        is_permuted = format.is_permuted and "input_groups" in parts
        own = replace(format, bits=bits, group_size=group_size, is_permuted=is_permuted)
        own = replace(own, is_symmetric=own.is_symmetric or "zeros" not in parts)
        matrix = QuantizedMatrix(name, in_features, out_features, own, parts, name if is_permuted else "")
        stated, groups = format.group_size, matrix.num_groups
        refuse_contradiction(model, matrix, "scales", (out_features, groups), "group_size", stated, tensors)
        stored = parts.get("zeros")
        is_packed = stored is None or tensors[stored].dtype != "I8"
        zeros = (math.ceil(out_features * bits / 32) if is_packed else out_features, groups)
        refuse_contradiction(model, matrix, "zeros", zeros, "num_bits", format.bits, tensors)
        refuse_contradiction(model, matrix, "input_groups", (words * 32 // bits,), "num_bits", format.bits, tensors)
        return matrix


def _refuse_other_formats(model: str, named: list[str], groups: list[Mapping[str, Any]]) -> None:
    other = next((one for one in named if one != FORMAT), None)
    if other is not None or not named:
        raise CheckpointError("compressed_format", folder=model, format=other or "-")
    for group in groups:
        for key in ("input_activations", "output_activations"):
            if group.get(key):
                raise CheckpointError("activations_quantized", folder=model, setting=key)


def _says_nothing(value: object) -> bool:
    """Whether a setting is there only to say that there is none, as a `sparsity_config` of the format "dense"."""
    return isinstance(value, dict) and value.get("format") == "dense"


def _read_weights(model: str, weights: Mapping[str, Any]) -> MatrixFormat:
    bits, kind, strategy = weights.get("num_bits"), weights.get("type", "int"), weights.get("strategy")
    if kind != "int":
        raise CheckpointError("compressed_setting", folder=model, setting=f"type {quoted_json(kind)}")
    if bits not in BITS:
        raise CheckpointError("compressed_setting", folder=model, setting=f"num_bits {quoted_json(bits)}")
    group_size = weights.get("group_size")
    if strategy not in (None, "group", "channel"):
        raise CheckpointError("compressed_setting", folder=model, setting=f"strategy {quoted_json(strategy)}")
    is_grouped = strategy == "group" or (strategy is None and group_size not in (None, -1))
    size = stated_group_size(model, group_size) if is_grouped else -1
    is_permuted = weights.get("actorder") not in (None, False, "weight", "static")
    return MatrixFormat(int(bits), size, is_permuted, weights.get("symmetric", True) is True, "pack_quantized")


def _possible_bits(format: MatrixFormat, shapes: Mapping[Part, tuple[int, ...]]) -> Iterator[int]:
    """The bits that the shapes of a matrix's tensors allow, what the configuration says first."""
    out_features, words = shapes["codes"]
    scales, zeros, order = shapes.get("scales", ()), shapes.get("zeros"), shapes.get("input_groups")
    for bits in (format.bits, *BITS):
        fits_zeros = zeros is None or zeros[:1] in ((math.ceil(out_features * bits / 32),), (out_features,))
        fits_order = order is None or (bool(order) and math.ceil(order[0] * bits / 32) == words)
        groups = scales[1] if scales[1:] else 1
        fits_groups = groups == 1 or format.group_size < 0 or math.ceil(groups * format.group_size * bits / 32) == words
        if fits_zeros and fits_order and fits_groups:
            yield bits
