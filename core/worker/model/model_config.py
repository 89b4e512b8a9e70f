"""transformers' configuration of the model that a checkpoint's text runs as."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.judgement import family_name, require_runs
from core.checkpoint.rope import extended_rope
from core.checkpoint.text_config import FALCONS, SAME_AS, has_pictures_left_out, named_config, text_config
from core.checkpoint.vocabulary import num_tokens
from core.common.errors import CheckpointError
from core.common.values import is_whole, quoted_text

log = logging.getLogger(__name__)
# Of positions that have three numbers, which are one for text.
MROPE_KEYS = ("mrope_section", "mrope_interleaved")
# Families with pictures whose class looks for the sizes of the text beside its own name as well.
FLAT_FAMILIES = ("qwen2_vl", "qwen2_5_vl")
# Of what transformers says: the name of a value and the value are its beginning.
MAX_DETAIL_CHARS = 200

# What a pass gives beside logits, or in place of what is read here, whatever the configuration asks for: training's.
OUTPUTS = {
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_router_logits": False,
}
# What a text part does without being told, and the plain family that is like it only where its configuration says so.
ALWAYS: dict[str, dict[str, Any]] = {"qwen3_vl_moe_text": {"norm_topk_prob": True}}


def read_config(checkpoint: Checkpoint, context_tokens: int) -> PreTrainedConfig:
    """The configuration of the class that runs `checkpoint`, for a context of `context_tokens`.

    Without its quantization, which is ours to apply. Raises CheckpointError where what transformers makes of it, with
    its own defaults, is nothing that runs.
    """
    checkpoint.require_runs()
    try:
        config = _make_config(checkpoint, context_tokens)
    except Exception as error:  # A family's code reads what strangers wrote, and raises anything.
        log.warning("the configuration of %s is not understood", checkpoint.name, exc_info=error)
        family = family_name(checkpoint.config)
        detail = quoted_text((str(error).splitlines() or [type(error).__name__])[-1], MAX_DETAIL_CHARS)
        raise CheckpointError("config_unread", model=checkpoint.name, family=family, detail=detail) from error
    # The class of a part says nothing about what the whole is for.
    found = {name: value for name, value in config.to_dict().items() if name != "architectures"}
    require_runs(checkpoint.name, found, checkpoint.tensors)
    return config


def _make_config(checkpoint: Checkpoint, context_tokens: int) -> PreTrainedConfig:
    found = with_plain_floats(deepcopy(checkpoint.config))
    found.pop("quantization_config", None)
    if found.get("model_type") in FALCONS:
        text = text_config(found)
        found = text | {"num_kv_heads": text["num_key_value_heads"]}
    family = found.get("model_type")
    if not isinstance(family, str) or family not in CONFIG_MAPPING:
        # Only the files say more, such as code of their own, which is not run.
        config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
    else:
        found = _with_text_part(found)
        for part in (found, found.get("text_config")):
            if isinstance(part, dict):
                _modernize_rope(part)
                settle_head_dim(part)
                # The class takes numbers alone; what they are is settled below.
                for name in ("pad_token_id", "vocab_size"):
                    if not is_whole(part.get(name)):
                        part.pop(name, None)
        config = CONFIG_MAPPING[family].from_dict(found)
    text = plain_text_config(config.get_text_config())
    if has_pictures_left_out(checkpoint.config):
        text.tie_word_embeddings = not any(name.startswith("lm_head.") for name in checkpoint.tensors)
    rope = extended_rope(checkpoint.config, context_tokens)
    if rope is not None:
        text.rope_parameters = {**rope, "rope_theta": text.rope_parameters["rope_theta"]}
    if hasattr(text, "quantization_config"):
        del text.quantization_config
    _settle_tokens(text, num_tokens(checkpoint))
    for name, value in OUTPUTS.items():
        if hasattr(text, name):
            setattr(text, name, value)
    return text


def _with_text_part(found: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a model with pictures, saved from its text part alone, whose sizes lie beside its family's
    name: the class looks for them in "text_config", and takes its own where there is none."""
    return {"model_type": found["model_type"], "text_config": named_config(found)} if is_text_part(found) else found


def is_text_part(found: Mapping[str, Any]) -> bool:
    """Whether config.json is the text part alone of a model with pictures, under the name of the whole."""
    if not has_pictures_left_out(found) or found["model_type"] in FLAT_FAMILIES:
        return False
    return "hidden_size" in found and not isinstance(found.get("text_config"), dict)


def settle_head_dim(part: dict[str, Any]) -> None:
    """Say the size of a head where it is null: some classes divide by nothing that they are given."""
    hidden, heads = part.get("hidden_size"), part.get("num_attention_heads")
    if "head_dim" in part and part["head_dim"] is None and is_whole(hidden) and is_whole(heads) and heads > 0:
        part["head_dim"] = hidden // heads


def with_plain_floats(value: Any) -> Any:
    """`value` with the numbers that JSON does not have: transformers writes {"__float__": "Infinity"}."""
    if isinstance(value, list):
        return [with_plain_floats(one) for one in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
        return float(value["__float__"])
    return {name: with_plain_floats(one) for name, one in value.items()}


def _settle_tokens(text: PreTrainedConfig, count: int) -> None:
    """Hold the configuration's tokens against the embedding's `count` rows. A padding token is never read here, and
    classes refuse one that the embedding does not have."""
    text.vocab_size = count
    pad = getattr(text, "pad_token_id", None)
    if pad is not None and not (is_whole(pad) and 0 <= pad < count):
        log.info("the padding token %s is none of the %d tokens, and is left out", pad, count)
        text.pad_token_id = None


def plain_text_config(text: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the plain family that computes the same as `text` does for text; itself where it is one."""
    if text.model_type not in SAME_AS:
        return text
    values = {name: value for name, value in text.to_dict().items() if name != "model_type"}
    rope = values.get("rope_parameters")
    if isinstance(rope, dict):
        values["rope_parameters"] = {name: value for name, value in rope.items() if name not in MROPE_KEYS}
    return CONFIG_MAPPING[SAME_AS[text.model_type]].from_dict(values | ALWAYS.get(text.model_type, {}))


def _modernize_rope(part: dict[str, Any]) -> None:
    """Call the kind of rope as transformers does: the first Phi-3 named longrope "su"."""
    for key in ("rope_scaling", "rope_parameters"):
        rope = part.get(key)
        if isinstance(rope, dict) and (rope.get("rope_type") or rope.get("type")) == "su":
            rope = {name: value for name, value in rope.items() if name != "type"} | {"rope_type": "longrope"}
            part[key] = _with_original_length(rope, part)


def _with_original_length(rope: dict[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    original = part.get("original_max_position_embeddings")
    return rope if original is None else {"original_max_position_embeddings": original, **rope}
