"""How long a context a model's rope can serve, and what rope it needs for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from core.checkpoint.text_config import named_config, text_config
from core.common.values import is_whole

# What families call their longest context, and what the first Llama had, for a config that leaves it out.
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len")
DEFAULT_CONTEXT_TOKENS = 2048
# Families whose model cards describe YaRN up to a factor of 4 over 32768 tokens (Qwen2.5, Qwen3), while config.json has
# it switched off. Qwen3's longest context adds 8192 tokens of answer to the original length.
YARN_FAMILIES = ("qwen2", "qwen3")
YARN_ORIGINAL_TOKENS = 32768
YARN_MAX_TOKENS = (32768, 40960)
YARN_FACTORS = (2.0, 4.0)
# Beyond any real model's factor; a config that says more would only make sums that nobody can read.
MAX_FACTOR = 1024


@dataclass(frozen=True, slots=True)
class ContextLimits:
    """`usual_tokens`: the longest context that the model takes with the rope that it has for short texts.
    `longest_tokens`: what another rope reaches, which is used for contexts beyond the usual one alone. `extension`: its
    kind, None without one."""

    usual_tokens: int
    longest_tokens: int
    extension: Literal["yarn", "longrope", "dynamic"] | None = None


def read_limits(config: Mapping[str, Any]) -> ContextLimits:
    """How long a context the model of a config.json takes."""
    named, text = named_config(config), text_config(config)
    values = [*map(named.get, CONTEXT_NAMES), text.get(CONTEXT_NAMES[0])]
    usual = next((value for value in values if is_whole(value) and value > 0), DEFAULT_CONTEXT_TOKENS)
    rope = _rope(text)
    kind = _kind(rope)
    if kind in ("longrope", "su"):
        # Phi-3 names it outside of the rope, and its class prefers that.
        original = text.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
        if is_whole(original) and 0 < original < usual:
            return ContextLimits(original, usual, "longrope")
    if kind == "dynamic":
        factor = rope.get("factor")
        if isinstance(factor, (int, float)) and not isinstance(factor, bool) and 1 < factor <= MAX_FACTOR:
            return ContextLimits(usual, math.floor(usual * factor), "dynamic")
    family = config.get("model_type")
    if kind == "default" and isinstance(family, str) and family in YARN_FAMILIES and usual in YARN_MAX_TOKENS:
        return ContextLimits(usual, math.floor(YARN_ORIGINAL_TOKENS * YARN_FACTORS[-1]), "yarn")
    return ContextLimits(usual, usual)


def extended_rope(config: Mapping[str, Any], context_tokens: int) -> dict[str, Any] | None:
    """The rope for a context beyond the usual one where it takes other parameters than config.json has; else None."""
    factor = yarn_factor(config, context_tokens)
    if factor is None:
        return None
    text = text_config(config)
    theta = text.get("rope_theta") or _rope(text).get("rope_theta")
    base = {} if theta is None else {"rope_theta": theta}
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": YARN_ORIGINAL_TOKENS, **base}


def yarn_factor(config: Mapping[str, Any], context_tokens: int) -> float | None:
    """The smallest factor of YaRN that serves `context_tokens`; None where the model does without."""
    limits = read_limits(config)
    if limits.extension != "yarn" or context_tokens <= limits.usual_tokens:
        return None
    return next((one for one in YARN_FACTORS if YARN_ORIGINAL_TOKENS * one >= context_tokens), YARN_FACTORS[-1])


def _rope(text: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in ("rope_parameters", "rope_scaling"):
        rope = text.get(key)
        if isinstance(rope, dict) and rope:
            return rope
    return {}


def _kind(rope: Mapping[str, Any]) -> str:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    # Positions of three numbers, as models with pictures have them, are plain ones for text.
    return "default" if kind == "mrope" else str(kind)
