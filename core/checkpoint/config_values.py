"""Why a class cannot compute with a value in a config.json, told before a download.

transformers finds such values once everything is there, some only in the first pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from core.checkpoint.family_values import wrong_values
from core.checkpoint.layer_halves import STEP_FAMILIES
from core.checkpoint.rope_values import MISSING, wrong_rope_values
from core.checkpoint.text_config import text_config
from core.common.errors import CheckpointError
from core.common.values import is_whole, quoted_value


def refuse_values(model: str, config: Mapping[str, Any]) -> CheckpointError | None:
    """ "config_value" or "config_untold" for the first value that is wrong by the order of the names, else None."""
    text = text_config(config)
    found = [*wrong_values(config), *wrong_rope_values(text), *_wrong_steps(text)]
    if not found:
        return None
    name, value = min(found, key=lambda one: one[0])
    if value is MISSING:
        return CheckpointError("config_untold", folder=model, name=name)
    return CheckpointError("config_value", folder=model, name=name, value=quoted_value(value))


def _wrong_steps(text: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """A step of no layers, where any layer asks for it."""
    dense, count = text.get("mlp_only_layers") or [], text.get("num_hidden_layers")
    if text.get("model_type") not in STEP_FAMILIES or text.get("decoder_sparse_step", 1) != 0:
        return
    is_read = not is_whole(count) or not isinstance(dense, list) or any(one not in dense for one in range(count))
    if is_read and text.get("num_experts") != 0:
        yield "decoder_sparse_step", text["decoder_sparse_step"]
