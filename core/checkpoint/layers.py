"""The layers of a model as its configuration describes them: each one's attention and MLP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.checkpoint.headers import TensorInfo
from core.checkpoint.text_config import has_capped_scores, has_distance_bias, text_config
from core.common.errors import CheckpointError
from core.common.values import is_whole

# No model's number is larger; a config that says so would only make sums that nobody can read.
MAX_NUMBER = 2**31
# A layer's number in the name of a tensor of the language model itself. Of more digits it is none, and Python reads no
# number of thousands.
LAYER = re.compile(r"(?:(?:model|decoder|transformer|gpt_neox|language_model)\.)*(?:layers|h|blocks)\.([0-9]{1,9})\.")


@dataclass(frozen=True, slots=True)
class FullAttention:
    """Attention over the whole context. Several heads may share one key and value head (grouped queries)."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class SlidingAttention(FullAttention):
    """Attention over the last `window_tokens` alone."""

    window_tokens: int


@dataclass(frozen=True, slots=True)
class DistanceAttention(FullAttention):
    """Attention whose scores lose something for each token of distance (ALiBi)."""


@dataclass(frozen=True, slots=True)
class CappedAttention(FullAttention):
    """Attention whose scores are kept below a bound."""


@dataclass(frozen=True, slots=True)
class DenseMlp:
    intermediate: int


@dataclass(frozen=True, slots=True)
class LayerShape:
    mixer: FullAttention
    mlp: DenseMlp


def read_layers(model: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> tuple[LayerShape, ...]:
    """The layers of `model`, first to last.

    Older configurations leave out `num_key_value_heads` (all heads have their own), `head_dim` (hidden / heads) and
    `intermediate_size` (4 * hidden). Raises CheckpointError "config_number" for a number that is missing or none,
    "config_layers" where the tensors are those of another number of layers.
    """
    text = text_config(config)
    heads, hidden = read_number(model, text, "num_attention_heads"), read_number(model, text, "hidden_size")
    count = read_number(model, text, "num_hidden_layers")
    mlp = DenseMlp(read_number(model, text, "intermediate_size", 4 * hidden))
    kv_heads = read_number(model, text, "num_key_value_heads", heads)
    other = DistanceAttention if has_distance_bias(text) else CappedAttention if has_capped_scores(text) else None
    full = (other or FullAttention)(heads, kv_heads, read_number(model, text, "head_dim", hidden // heads))
    numbers = {int(match[1]) for name in tensors if (match := LAYER.match(name))}
    # Names of other families have no number that is known here; a layer still has a tensor.
    if (numbers and max(numbers) + 1 != count) or count > len(tensors):
        raise CheckpointError("config_layers", folder=model, value=count, found=max(numbers, default=-1) + 1)
    sliding, kinds = _sliding(full, text.get("sliding_window")), text.get("layer_types")
    if not isinstance(kinds, list) or len(kinds) != count:
        kinds = [None] * count
    return tuple(LayerShape(sliding if kind == "sliding_attention" else full, mlp) for kind in kinds)


def read_number(model: str, config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A positive number of config.json. Raises CheckpointError "config_number"."""
    value = config.get(name)
    value = default if value is None else value
    if not is_whole(value) or not 0 < value < MAX_NUMBER:
        raise CheckpointError("config_number", folder=model, name=name, value=str(value))
    return value


def contradiction(model: str, name: str, value: int, tensor: str, found: TensorInfo) -> CheckpointError:
    """The error for a `tensor` whose shape is not what `name` in the configuration makes it."""
    return CheckpointError(
        "config_tensors", folder=model, name=name, value=value, tensor=tensor, shape=str(list(found.shape))
    )


def _sliding(full: FullAttention, window: object) -> FullAttention:
    if not is_whole(window) or window <= 0:
        return full
    return SlidingAttention(full.num_heads, full.num_kv_heads, full.head_dim, window)
