"""What a person should know of a model that runs: what is left out, what differs, what is slower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.text_config import has_capped_scores, has_distance_bias, quantization_of, text_config

Note = tuple[str, dict[str, str | int | float]]


def notes(checkpoint: Checkpoint, context_tokens: int) -> tuple[Note, ...]:
    """The notes for a load with `context_tokens`: keys of the locales' section "note" and what the sentences quote."""
    found: list[Note] = []
    if checkpoint.is_without_pictures:
        found.append(("without_pictures" if checkpoint.has_picture_part else "text_alone", {}))
    if checkpoint.has_guessing_part:
        found.append(("without_guessing", {}))
    limits = checkpoint.context_limits
    if limits.extension is not None and context_tokens > limits.usual_tokens:
        found.append((f"rope_{limits.extension}", {"usual": limits.usual_tokens}))
    text = text_config(checkpoint.config)
    if has_distance_bias(text) or has_capped_scores(text):
        found.append(("plain_steps", {}))
    if any(layer.recurrent and not layer.recurrent.is_capturable for layer in checkpoint.layers):
        found.append(("plain_states", {}))
    if _has_small_cache(checkpoint.config):
        found.append(("cache_in_half", {}))
    return tuple(found)


def _has_small_cache(config: Mapping[str, Any]) -> bool:
    """Whether the files tell how a KV cache of 8 bit would be scaled."""
    settings = quantization_of(config)
    return isinstance(settings, dict) and bool(settings.get("kv_cache_scheme"))
