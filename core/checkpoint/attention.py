"""The attention of each layer of a model, as its configuration describes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from core.checkpoint.numbers import read_number
from core.checkpoint.text_config import has_capped_scores, has_distance_bias
from core.common.values import is_whole

# Families whose query matrix also gives a gate for the attention's output, twice as wide.
GATED_FAMILIES = frozenset(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"))
# Families whose heads each have a score that belongs to no token (arXiv 2309.17453).
SINK_FAMILIES = frozenset(("gpt_oss", "granite_swa"))
# Families whose full and sliding layers have heads of different sizes, and every how many layers one is full.
TWO_SIZES = {"gemma4_text": 6, "gemma4_unified_text": 6}


@dataclass(frozen=True, slots=True)
class FullAttention:
    """Attention over the whole context. Several heads may share one key and value head (grouped queries).

    is_gated: the query matrix gives a gate for the output as well, and is twice as wide. has_sinks: each head has a
    score that belongs to no token. shares_cache: keys and values are those of an earlier layer.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    is_gated: bool = field(default=False, kw_only=True)
    has_sinks: bool = field(default=False, kw_only=True)
    shares_cache: bool = field(default=False, kw_only=True)

    @property
    def query_features(self) -> int:
        """How many outputs the query matrix has."""
        return self.num_heads * self.head_dim * (2 if self.is_gated else 1)


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


def read_attention(model: str, text: Mapping[str, Any], kinds: Sequence[object]) -> tuple[FullAttention, ...]:
    """The attention of each layer of `model`. text: what text_config() gives; kinds: `layer_types`, each None where it
    says nothing.

    Older configurations leave out `num_key_value_heads` (all heads have their own) and `head_dim` (hidden / heads).
    Raises CheckpointError "config_number" for a number that is missing or none.
    """
    heads, hidden = read_number(model, text, "num_attention_heads"), read_number(model, text, "hidden_size")
    kv_heads, family = read_number(model, text, "num_key_value_heads", heads), text.get("model_type")
    other = DistanceAttention if has_distance_bias(text) else CappedAttention if has_capped_scores(text) else None
    full = (other or FullAttention)(
        heads,
        kv_heads,
        read_number(model, text, "head_dim", hidden // heads),
        is_gated=family in GATED_FAMILIES,
        has_sinks=family in SINK_FAMILIES,
    )
    near = _sliding(full, text.get("sliding_window"))
    if isinstance(family, str) and family in TWO_SIZES:
        return _two_sizes(model, text, kinds, full, near)
    return tuple(near if kind == "sliding_attention" else full for kind in kinds)


def _sliding(full: FullAttention, window: object) -> FullAttention:
    if not is_whole(window) or window <= 0:
        return full
    return SlidingAttention(
        full.num_heads,
        full.num_kv_heads,
        full.head_dim,
        window,
        is_gated=full.is_gated,
        has_sinks=full.has_sinks,
    )


def _two_sizes(
    model: str, text: Mapping[str, Any], kinds: Sequence[object], full: FullAttention, near: FullAttention
) -> tuple[FullAttention, ...]:
    """Gemma 4's layers: the full ones have heads of another size, and fewer keys where those are the values too. The
    last few may read an earlier layer's keys and values.

    Releases have names for the full layers' numbers; what transformers writes again has those of each layer instead.
    """
    kv_heads = full.num_kv_heads
    if text.get("attention_k_eq_v"):
        kv_heads = read_number(model, text, "num_global_key_value_heads", kv_heads)
    full = replace(full, num_kv_heads=kv_heads, head_dim=read_number(model, text, "global_head_dim", 512))
    shared, step = text.get("num_kv_shared_layers"), TWO_SIZES[str(text["model_type"])]
    by_layer = text.get("per_layer_config")
    first_shared = len(kinds) - (shared if is_whole(shared) else 0)
    found = []
    for index, kind in enumerate(kinds):
        # The last layer is full whatever the configuration says.
        is_full = index == len(kinds) - 1 or (kind == "full_attention" if kind else (index + 1) % step == 0)
        mixer = replace(full if is_full else near, shares_cache=index >= first_shared)
        # What is written for each layer leaves out a layer that has the numbers of all.
        own = by_layer.get(str(index), {}) if isinstance(by_layer, dict) else None
        if isinstance(own, dict):
            mixer = replace(
                mixer,
                num_kv_heads=read_number(model, own, "num_key_value_heads", near.num_kv_heads),
                head_dim=read_number(model, own, "head_dim", near.head_dim),
            )
        found.append(mixer)
    return tuple(found)
