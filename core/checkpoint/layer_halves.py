"""What the layers of mixtures of experts and of recurrent models are made of, by the rules of their classes.

Each layer is "attention" or "recurrent" in one half, and "dense" or "sparse" (with experts) in the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.checkpoint.expert_counts import COUNTS
from core.checkpoint.experts import first_value
from core.common.values import is_whole

RECURRENT = frozenset(("linear_attention", "mamba", "conv"))
# Families whose layers have experts at every so many, as `decoder_sparse_step` says.
STEP_FAMILIES = frozenset(("qwen2_moe", "qwen3_moe", "qwen3_next"))
# Families whose first layers are dense: what tells how many, and how many are where nothing does.
FIRST_DENSE: dict[str, tuple[str | None, int]] = {
    "beam": (None, 3),
    "cohere2_moe": ("first_k_dense_replace", 0),
    "dots1": ("first_k_dense_replace", 0),
    "exaone_moe": ("first_k_dense_replace", 1),
    "glm4_moe": ("first_k_dense_replace", 1),
    "hy_v3": (None, 1),
    "laguna": (None, 1),
    "lfm2_moe": ("num_dense_layers", 2),
    "mellum": (None, 0),
    "minimax_m3_vl_text": (None, 0),
}
# Those of them that may say it of each layer.
LISTED_FAMILIES = frozenset(("beam", "cohere2_moe", "exaone_moe", "hy_v3", "laguna", "mellum", "minimax_m3_vl_text"))
ALL_DENSE = frozenset(("bamba", "falcon_h1", "lfm2", "lfm3", "qwen3_5_text"))


def layer_halves(text: Mapping[str, Any], num_layers: int) -> list[tuple[str, str]] | None:
    """The two halves of each layer; None where the configuration has no values that tell. text: what text_config()
    gives."""
    kinds, sparse = text.get("layer_types"), _sparse_layers(text, num_layers)
    if kinds is None:
        kinds = [None] * num_layers
    if sparse is None or not isinstance(kinds, list) or len(kinds) != num_layers:
        return None
    mixers = ["recurrent" if isinstance(kind, str) and kind in RECURRENT else "attention" for kind in kinds]
    return [(mixer, "sparse" if index in sparse else "dense") for index, mixer in enumerate(mixers)]


def _sparse_layers(text: Mapping[str, Any], num_layers: int) -> set[int] | None:
    """The numbers of the layers with experts; None where the configuration does not tell."""
    family, every = text.get("model_type"), set(range(num_layers))
    if not isinstance(family, str):
        return None
    if family in STEP_FAMILIES:
        return _by_step(text, every)
    if family in FIRST_DENSE:
        return _behind_the_first(family, text, every)
    if family == "ernie4_5_moe":
        return _by_interval(text, every)
    if family == "llama4_text":
        return _by_number(text, every)
    if family in ALL_DENSE or (family == "granitemoehybrid" and first_value(text, COUNTS) == 0):
        return set()
    return every


def _by_step(text: Mapping[str, Any], every: set[int]) -> set[int] | None:
    step, dense, count = text.get("decoder_sparse_step", 1), text.get("mlp_only_layers"), first_value(text, COUNTS)
    dense = [] if dense is None else dense
    if not is_whole(step) or step == 0 or not isinstance(dense, list):
        return None
    has_none = is_whole(count) and count <= 0
    return set() if has_none else {index for index in every if index not in dense and (index + 1) % step == 0}


def _behind_the_first(family: str, text: Mapping[str, Any], every: set[int]) -> set[int] | None:
    listed = text.get("mlp_layer_types") if family in LISTED_FAMILIES else None
    if listed is None and family == "minimax_m3_vl_text" and (often := text.get("moe_layer_freq")) is not None:
        listed = ["sparse" if one else "dense" for one in often] if isinstance(often, list) else often
    if listed is not None:
        is_whole_list = isinstance(listed, list) and len(listed) >= len(every)
        return {index for index in every if listed[index] == "sparse"} if is_whole_list else None
    name, usual = FIRST_DENSE[family]
    count = text.get(name, usual) if name else usual
    return {index for index in every if index >= count} if is_whole(count) else None


def _by_interval(text: Mapping[str, Any], every: set[int]) -> set[int] | None:
    start, end = text.get("moe_layer_start_index", 1), text.get("moe_layer_end_index", -1)
    interval = text.get("moe_layer_interval", 1)
    if not (is_whole(start) and is_whole(end) and is_whole(interval)) or interval == 0:
        return None
    end = max(every, default=0) if end == -1 else end
    return {index for index in every if (index + 1) % interval == 0 and start <= index <= end}


def _by_number(text: Mapping[str, Any], every: set[int]) -> set[int] | None:
    listed, step = text.get("moe_layers"), text.get("interleave_moe_layer_step", 1)
    if listed is None and is_whole(step) and step > 0:
        return {index for index in every if (index + 1) % step == 0}
    return {index for index in every if index in listed} if isinstance(listed, list) else None
