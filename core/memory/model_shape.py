"""The numbers of a model that its memory follows from, read from a checkpoint's configuration and tensors; no torch."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from core.checkpoint.checkpoint import Checkpoint
from core.common.errors import CheckpointError
from core.common.values import is_whole
from core.memory.matrix_groups import merged_matrices

# No model's number is larger; a config that says so would only make sums that nobody can read.
MAX_NUMBER = 2**31
# A layer's number in the name of a tensor of the language model itself. Of more digits it is none, and Python reads no
# number of thousands.
LAYER = re.compile(r"(?:(?:model|transformer|language_model)\.)*(?:layers|h)\.([0-9]{1,9})\.")


@dataclass(frozen=True, slots=True)
class MatrixShape:
    """One quantized matrix; each of its scale `groups` is some inputs of an output."""

    in_features: int
    out_features: int
    bits: int
    groups: int
    act_order: bool
    has_bias: bool
    symmetric: bool = True


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a plan needs: each kind of quantized matrix with how often it comes, and the sizes of all other tensors."""

    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary: int
    matrices: tuple[tuple[MatrixShape, int], ...]
    plain_elements: tuple[int, ...]


def read_shape(checkpoint: Checkpoint, merged: bool = False) -> ModelShape:
    """The shape of the model in `checkpoint`; `merged` counts matrices that share their input as one.

    Older configurations leave out `num_key_value_heads` (all heads have their own) and `head_dim` (hidden / heads).
    Raises CheckpointError "config_number" for a number that is missing or none, "config_tensors" where the
    configuration contradicts the tensors.
    """
    text = checkpoint.config.get("text_config")
    config = text if isinstance(text, dict) else checkpoint.config
    heads = _number(checkpoint, config, "num_attention_heads")
    hidden = _number(checkpoint, config, "hidden_size")
    shape = ModelShape(
        num_layers=_number(checkpoint, config, "num_hidden_layers"),
        hidden=hidden,
        intermediate=_number(checkpoint, config, "intermediate_size", 4 * hidden),
        num_heads=heads,
        num_kv_heads=_number(checkpoint, config, "num_key_value_heads", heads),
        head_dim=_number(checkpoint, config, "head_dim", hidden // heads),
        vocabulary=_number(checkpoint, config, "vocab_size"),
        matrices=tuple(Counter(_matrices(checkpoint, merged)).items()),
        plain_elements=tuple(_plain_elements(checkpoint, config)),
    )
    _check_sizes(checkpoint, shape)
    return shape


def _number(checkpoint: Checkpoint, config: dict[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    value = default if value is None else value
    if not is_whole(value) or not 0 < value < MAX_NUMBER:
        raise CheckpointError("config_number", folder=checkpoint.name, name=name, value=str(value))
    return value


def _matrices(checkpoint: Checkpoint, merged: bool) -> list[MatrixShape]:
    quantization, found = checkpoint.quantization, []
    groups_of = {name: group for group in merged_matrices(checkpoint) for name in group.sizes} if merged else {}
    for name, tensor in checkpoint.tensors.items():
        if not name.endswith(".qweight"):
            continue
        if len(tensor.shape) != 2:
            raise CheckpointError("no_matrix", folder=checkpoint.name, name=name, shape=str(list(tensor.shape)))
        rows, columns = tensor.shape[0] * 32 // quantization.bits, tensor.shape[1]
        group_size = rows if quantization.group_size < 0 else quantization.group_size
        groups = math.ceil(rows / group_size) if rows else 0
        _check_parts(checkpoint, name.removesuffix("qweight"), rows, columns, groups)
        # A bias beside a matrix of a family that has none is auto-gptq's zeros, which are not kept.
        has_bias = name.replace(".qweight", ".bias") in checkpoint.tensors and _has_biases(checkpoint)
        group = groups_of.get(name.removesuffix(".qweight"))
        if group is None or name == f"{next(iter(group.sizes))}.qweight":
            columns = group.columns if group else columns
            found.append(
                MatrixShape(
                    rows,
                    columns,
                    quantization.bits,
                    groups,
                    quantization.is_permuted,
                    has_bias,
                    quantization.is_symmetric,
                )
            )
    return found


def _has_biases(checkpoint: Checkpoint) -> bool:
    config = checkpoint.config
    return bool(config.get("attention_bias") or config.get("mlp_bias")) or config.get("model_type") != "llama"


def _plain_elements(checkpoint: Checkpoint, config: dict[str, Any]) -> list[int]:
    parts = (".qweight", ".qzeros", ".scales", ".g_idx", ".bias", ".inv_freq")
    is_tied = bool(config.get("tie_word_embeddings", False))
    return [
        math.prod(tensor.shape)
        for name, tensor in checkpoint.tensors.items()
        if not name.endswith(parts) and not (is_tied and name == "lm_head.weight")
    ]


def _check_parts(checkpoint: Checkpoint, prefix: str, rows: int, columns: int, groups: int) -> None:
    """Raise where the parts of one matrix have other shapes than its bits and group size make.

    g_idx [rows] tells the bits, scales [groups, columns] the group size, qzeros [groups, columns * bits / 32] both.
    """
    bits = checkpoint.quantization.bits
    wanted = {
        "g_idx": ("bits", bits, (rows,)),
        "scales": ("group_size", checkpoint.quantization.group_size, (groups, columns)),
        "qzeros": ("bits", bits, (groups, math.ceil(columns * bits / 32))),
    }
    for part, (name, value, shape) in wanted.items():
        tensor = checkpoint.tensors.get(prefix + part)
        if tensor is not None and tensor.shape != shape:
            raise _contradiction(checkpoint, name, value, prefix + part, tensor.shape)


def _check_sizes(checkpoint: Checkpoint, shape: ModelShape) -> None:
    """Raise where the configuration's sizes are not those of the tensors that have them."""
    found = {int(match[1]) for name in checkpoint.tensors if (match := LAYER.match(name))}
    if found and max(found) + 1 != shape.num_layers:
        raise CheckpointError("config_layers", folder=checkpoint.name, value=shape.num_layers, found=max(found) + 1)
    kv_columns = shape.num_kv_heads * shape.head_dim
    wanted = (
        ("embed_tokens.weight", 0, "vocab_size", shape.vocabulary, shape.vocabulary),
        ("embed_tokens.weight", 1, "hidden_size", shape.hidden, shape.hidden),
        ("self_attn.k_proj.qweight", 1, "num_key_value_heads", shape.num_kv_heads, kv_columns),
        ("mlp.gate_proj.qweight", 1, "intermediate_size", shape.intermediate, shape.intermediate),
    )
    for ending, axis, number, value, size in wanted:
        for name, tensor in checkpoint.tensors.items():
            if name.endswith(ending) and tensor.shape[axis : axis + 1] != (size,):
                raise _contradiction(checkpoint, number, value, name, tensor.shape)


def _contradiction(
    checkpoint: Checkpoint, name: str, value: int, tensor: str, shape: tuple[int, ...]
) -> CheckpointError:
    return CheckpointError(
        "config_tensors", folder=checkpoint.name, name=name, value=value, tensor=tensor, shape=str(list(shape))
    )
