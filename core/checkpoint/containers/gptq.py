"""GPTQ as auto-gptq, gptqmodel and AutoRound write it.

A matrix of [in, out] features at b bits, with G scale groups along its inputs, has qweight int32 [in * b / 32, out],
qzeros int32 [G, out * b / 32], scales [G, out], and perhaps g_idx int32 [in] and bias [out].

Bits and group size are told by these shapes, for each matrix by itself: `dynamic` gives single modules others, and what
older configurations say of all of them is not always so.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
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
from core.common.values import is_whole, quoted_json

CODES = ".qweight"
ENDINGS: dict[Part, str] = {
    "codes": CODES,
    "zeros": ".qzeros",
    "scales": ".scales",
    "input_groups": ".g_idx",
    "bias": ".bias",
}
# Programs and kernels by whose names some settings call what is plain GPTQ; the tensors tell what is not.
METHODS = ("gptq", "gptq_marlin", "gptqmodel", "gptq_v2")
# What gptqmodel calls itself in `meta.quantizer`, a text or a list of texts.
WORDS_WRITER = "gptqmodel"


class GptqContainer:
    packings: tuple[Packing, ...] = ("gptq", "gptq_words", "gptq_v2")
    endings = ENDINGS
    required: tuple[Part, ...] = ("codes", "zeros", "scales")

    def accepts(self, found: Mapping[str, Any]) -> bool:
        return names_gptq(found)

    def read_format(self, model: str, found: Mapping[str, Any]) -> MatrixFormat:
        bits = found.get("bits")
        if not is_whole(bits) or bits not in BITS:
            raise CheckpointError("bits", folder=model, bits=quoted_json(bits))
        named = quoted_json(found.get("checkpoint_format") or found.get("format") or "gptq").lower()
        if named not in METHODS:
            raise CheckpointError("format", folder=model, format=named)
        words = quoted_json(found.get("pack_dtype") or "int32").removeprefix("torch.")
        if words != "int32":
            raise CheckpointError("format", folder=model, format=f"pack_dtype {words}")
        # Single modules may differ: what any of them is said to be is taken for all until their tensors are read.
        # Patterns that a stranger wrote are not run for it.
        settings = [found, *settings_of(found.get("dynamic"))]
        return MatrixFormat(
            bits=bits,
            group_size=stated_group_size(model, found.get("group_size", -1)),
            is_permuted=any(bool(one.get("desc_act", False)) for one in settings),
            # Anything but true: there are kernels that take both, and one that computes nonsense for the asymmetric.
            is_symmetric=all(one.get("sym", True) is True for one in settings),
            packing="gptq_v2" if named == "gptq_v2" else "gptq_words" if _subtracts_words(found) else "gptq",
        )

    def read(self, model: str, format: MatrixFormat, tensors: Mapping[str, TensorInfo]) -> dict[str, QuantizedMatrix]:
        # Experts are alike by the thousand: what is right for one matrix is not checked again for those of its shapes.
        known: dict[tuple[tuple[Part, tuple[int, ...]], ...], QuantizedMatrix] = {}
        matrices = {}
        for name in matrix_names(CODES, tensors):
            parts = parts_of(model, name, ENDINGS, tensors)
            shapes = tuple([(part, tensors[stored].shape) for part, stored in parts.items()])
            if shapes not in known:
                known[shapes] = _read_matrix(model, name, parts, format, tensors)
            like = known[shapes]
            order = name if like.format.is_permuted else ""
            matrices[name] = QuantizedMatrix(name, like.in_features, like.out_features, like.format, parts, order)
        return matrices


def names_gptq(found: Mapping[str, Any]) -> bool:
    """Whether the settings are GPTQ's; those that name no method are auto-gptq's older ones."""
    return quoted_json(found.get("quant_method") or METHODS[0]).lower() in METHODS


def is_marlin(names: Collection[str]) -> bool:
    """Whether tensors are in the kernel Marlin's own order, which auto-gptq once stored: codes "B" and scales "s"."""
    return any(name.endswith(".B") and f"{name[:-2]}.s" in names for name in names)


def _subtracts_words(found: Mapping[str, Any]) -> bool:
    """Whether gptqmodel wrote the file: its version 1 subtracts from whole words, where others do from each field."""
    meta = found.get("meta")
    named = meta.get("quantizer") if isinstance(meta, dict) else None
    return any(str(one).startswith(WORDS_WRITER) for one in (named if isinstance(named, list) else [named]))


def _read_matrix(
    model: str, name: str, parts: Mapping[Part, str], format: MatrixFormat, tensors: Mapping[str, TensorInfo]
) -> QuantizedMatrix:
    shapes = {part: tensors[stored].shape for part, stored in parts.items()}
    rows, out_features = shapes["codes"]
    if format.bits in (4, 8) and shapes.get("scales", ())[1:] == (out_features * 2 // format.bits,):
        # Tiles of 16 inputs in a row: vLLM's order for Marlin under GPTQ's names.
        raise CheckpointError("format", folder=model, format="marlin")
    bits = next(_possible_bits(format.bits, shapes), format.bits)
    in_features = rows * 32 // bits
    group_size = group_size_of(format.group_size, in_features, shapes.get("scales") or shapes.get("zeros"))
    # Without a tensor that tells otherwise the inputs are in order.
    is_permuted = format.is_permuted and "input_groups" in parts
    own = replace(format, bits=bits, group_size=group_size, is_permuted=is_permuted)
    matrix = QuantizedMatrix(name, in_features, out_features, own, parts)
    _check_shapes(model, matrix, format, tensors)
    return matrix


def _possible_bits(stated: int, shapes: Mapping[Part, tuple[int, ...]]) -> Iterator[int]:
    """The bits that the shapes of a matrix's tensors allow, what the configuration says first."""
    rows, columns = shapes["codes"]
    zeros, groups = shapes.get("zeros"), shapes.get("input_groups")
    for bits in (stated, *BITS):
        fits_zeros = zeros is None or zeros[1:] == (math.ceil(columns * bits / 32),)
        fits_groups = groups is None or (*groups, bits * groups[0] if groups else 0) == (rows * 32 // bits, rows * 32)
        if fits_zeros and fits_groups:
            yield bits


def _check_shapes(model: str, matrix: QuantizedMatrix, stated: MatrixFormat, tensors: Mapping[str, TensorInfo]) -> None:
    """Raise CheckpointError where a tensor of `matrix` has another shape than its bits and groups make.

    g_idx tells the bits, scales the group size, qzeros both; what is `stated` tells which of two is wrong.
    """
    columns, bits = matrix.out_features, matrix.format.bits
    words = math.ceil(columns * bits / 32)
    scales, stated_groups = matrix.tensors.get("scales"), stated.num_groups(matrix.in_features)
    groups = matrix.num_groups
    if scales is not None and tensors[scales].shape != (groups, columns):
        groups = stated_groups
    zeros = matrix.tensors.get("zeros")
    if zeros is not None and tensors[zeros].shape == (stated_groups, words):
        groups = stated_groups
    wanted: tuple[tuple[Part, str, int, tuple[int, ...]], ...] = (
        ("input_groups", "bits", stated.bits, (matrix.in_features,)),
        ("scales", "group_size", stated.group_size, (groups, columns)),
        ("zeros", "bits", stated.bits, (groups, words)),
    )
    for part, key, value, shape in wanted:
        refuse_contradiction(model, matrix, part, shape, key, value, tensors)
