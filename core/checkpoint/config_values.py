"""Why a class cannot compute with a value in a config.json, told before a download.

transformers finds such values once everything is there, some only in the first pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from core.checkpoint.family_values import wrong_values
from core.checkpoint.layer_halves import LISTED_FAMILIES, STEP_FAMILIES
from core.checkpoint.rope_values import MISSING, wrong_rope_values
from core.checkpoint.text_config import named_config, text_config
from core.common.errors import CheckpointError
from core.common.values import is_whole, quoted_value

# Families whose classes work out what kind each layer is, and fail where they are told.
WORKED_OUT = frozenset(("bamba", "falcon_h1"))
# Families whose classes look a layer's value up, however long the list is, and what they look up.
LOOKED_UP = {"hunyuan_v1_moe": ("moe_topk",), "hy_v3": ("mlp_layer_types",)}
# What a family's class has no number or list for where config.json is silent.
UNTOLD = {"dots1": ("n_routed_experts", "num_experts_per_tok", "n_shared_experts"), "lfm2_moe": ("layer_types",)}


def refuse_values(model: str, config: Mapping[str, Any]) -> CheckpointError | None:
    """ "config_value" or "config_untold" for the first value that is wrong by the order of the names, "config_list" for
    a list of another number of layers, else None."""
    text, told = text_config(config), named_config(config)
    found = [*wrong_values(config), *wrong_rope_values(text), *_wrong_steps(text), *_wrong_kinds(told)]
    if not found:
        return _refuse_lists(model, told, text.get("num_hidden_layers"))
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


def _wrong_kinds(told: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is told of the kinds of layers and no class of the family takes."""
    family, listed = str(told.get("model_type")), told.get("mlp_layer_types")
    if family in WORKED_OUT:
        yield from ((name, told[name]) for name in ("layer_types", "layers_block_type") if name in told)
    for name in UNTOLD.get(family, ()):
        if told.get(name) is None:
            yield name, MISSING
    if family in LISTED_FAMILIES - LOOKED_UP.keys() and isinstance(listed, list):
        if any(one not in ("dense", "sparse") for one in listed):
            yield "mlp_layer_types", listed


def _refuse_lists(model: str, told: Mapping[str, Any], num_layers: object) -> CheckpointError | None:
    if not is_whole(num_layers):
        return None  # Whoever asks for the layers is told.
    for name in _wrong_lists(told, num_layers):
        return CheckpointError("config_list", folder=model, name=name, found=len(told[name]), value=num_layers)
    return None


def _wrong_lists(told: Mapping[str, Any], num_layers: int) -> Iterator[str]:
    """The names of lists of one value a layer that are too long or too short. Some count layers that guess tokens."""
    family = str(told.get("model_type"))
    for name in LOOKED_UP.get(family, ()):
        if isinstance(listed := told.get(name), list) and len(listed) < num_layers:
            yield name
    kinds, mlps = told.get("layer_types"), told.get("mlp_layer_types")
    if isinstance(kinds, list) and len(kinds) != num_layers:
        yield "layer_types"
    # A class that has no kinds of layers leaves those of MLPs unread.
    are_read = family in LISTED_FAMILIES - LOOKED_UP.keys() or isinstance(kinds, list)
    if are_read and isinstance(mlps, list) and len(mlps) != num_layers:
        yield "mlp_layer_types"
