"""Tensors under the names that transformers' classes have for them, whatever release or tool wrote the file.

The renames are those of transformers 5.23 (conversion_mapping.py) as far as they concern a language model. Parts for
pictures are left out: the text part is run alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from core.checkpoint.headers import TensorInfo
from core.checkpoint.layers import LAYER
from core.checkpoint.text_config import PICTURE_FAMILIES, has_pictures_left_out, named_config, text_config
from core.common.values import is_whole

Renames = tuple[tuple[re.Pattern[str], str], ...]

# The text part of a model with pictures, as its family's releases or transformers itself call it.
TEXT_PART: Renames = (
    # Some versions of llm-compressor wrote it once more each time that they saved.
    (re.compile(r"^(model\.)?(language_model\.)+lm_head\."), "lm_head."),
    (re.compile(r"^(model\.)?(language_model\.)+(model\.)?"), "model."),
    (re.compile(r"^model\.text_model\."), "model."),
)
PICTURE_PART = re.compile(
    r"^(model\.)?(visual|vision_tower|vision_model|vision_encoder|image_tower|video_tower|image_newline|vision_embed"
    r"|multi_modal_projector|mm_projector|projector|connector|perceiver|visual_embeddings_table|vte|audio_tower"
    r"|embed_vision|embed_audio)\b"
)
# Families that are nothing but the text part of one with pictures.
TEXT_FAMILIES = frozenset(family for family in PICTURE_FAMILIES.values() if family.endswith("_text"))
# Heads that guess several tokens at once (multi-token prediction), which no class here reads.
GUESSING_PART = re.compile(r"^(model\.)?mtp[._]")
# Families that have them as further layers, whether their configuration says so or not.
GUESSING_LAYERS = ("glm4_moe", "hy_v3")
# What training and compiling put before every name.
WRAPPERS = re.compile(r"^(_orig_mod\.|module\.|base_model\.model\.)+")
# The text part alone, saved under the names of the model with pictures; and a model saved without its head's class.
TEXT_ALONE: Renames = (*TEXT_PART, (re.compile(r"^(?=(layers|embed_tokens|norm|final_layernorm)\.)"), "model."))
# Modules at the top of a family's model, which some files name without the model before them.
_GPT2_MODULES = r"^(?=(h|wte|wpe|ln_f)\.)"
_RENAMES: dict[str, Renames] = {
    "bloom": ((re.compile(r"^(?=(h|word_embeddings|word_embeddings_layernorm|ln_f)\.)"), "transformer."),),
    "falcon": ((re.compile(r"^(?=(h|word_embeddings|ln_f)\.)"), "transformer."),),
    "gpt2": ((re.compile(_GPT2_MODULES), "transformer."),),
    "gpt_bigcode": ((re.compile(_GPT2_MODULES), "transformer."),),
    "gpt_neox": ((re.compile(r"^(?=(layers|embed_in|final_layer_norm)\.)"), "gpt_neox."),),
    "gptj": ((re.compile(_GPT2_MODULES), "transformer."),),
    "mpt": ((re.compile(r"^(?=(blocks|wte|norm_f)\.)"), "transformer."),),
    "opt": ((re.compile(r"^(?=decoder\.)"), "model."),),
}
# What older releases and adapters call a module that families' classes call otherwise now: the head, and of mixtures of
# experts the parts of an MLP; and what some call an expert's matrices.
_MIXTRAL: Renames = ((re.compile(r"\.block_sparse_moe\."), ".mlp."),)
_GRANITE: Renames = (
    (re.compile(r"\.input_linear\.([0-9]+)\.linear\."), r".experts.\1.gate_up_proj."),
    (re.compile(r"\.output_linear\.([0-9]+)\.linear\."), r".experts.\1.down_proj."),
    (re.compile(r"\.block_sparse_moe\.input_linear\.weight$"), ".block_sparse_moe.experts.gate_up_proj"),
    (re.compile(r"\.block_sparse_moe\.output_linear\.weight$"), ".block_sparse_moe.experts.down_proj"),
    (re.compile(r"\.router\.layer\."), ".router."),
)
_MODULE_RENAMES: dict[str, Renames] = {
    "ernie4_5_moe": ((re.compile(r"\.mlp\.moe_statics\."), ".mlp.gate.moe_statics."),),
    "exaone_moe": ((re.compile(r"\.mlp\.e_score_correction_bias"), ".mlp.gate.e_score_correction_bias"),),
    "gpt_neox": ((re.compile(r"^embed_out\."), "lm_head."),),
    # As Unsloth's files have them, from which others were quantized.
    "gpt_oss": (
        (re.compile(r"\.experts\.gate_up_projs\.([0-9]+)\."), r".experts.\1.gate_up_proj."),
        (re.compile(r"\.experts\.down_projs\.([0-9]+)\."), r".experts.\1.down_proj."),
        (re.compile(r"\.router\.linear\."), ".router."),
    ),
    "granitemoe": _GRANITE,
    "granitemoehybrid": _GRANITE,
    "granitemoeshared": _GRANITE,
    "hy_v3": (
        (re.compile(r"\.mlp\.router\.gate\."), ".mlp.gate."),
        (re.compile(r"\.mlp\.expert_bias"), ".mlp.e_score_correction_bias"),
        (re.compile(r"\.mlp\.shared_mlp\."), ".mlp.shared_experts."),
    ),
    "kolibri1": (
        (re.compile(r"\.moe\.router\.expert_bias"), ".mlp.gate.e_score_correction_bias"),
        (re.compile(r"\.post_attn_norm\."), ".post_self_attn_layernorm."),
        (re.compile(r"\.post_ffn_norm\."), ".post_mlp_layernorm."),
    ),
    "laguna": (
        (re.compile(r"\.mlp\.experts\.e_score_correction_bias"), ".mlp.gate.e_score_correction_bias"),
        (re.compile(r"\.mlp\.shared_expert\."), ".mlp.shared_experts."),
    ),
    "minimax_m2": _MIXTRAL,
    "mixtral": _MIXTRAL,
    "phimoe": (*_MIXTRAL, (re.compile(r"\.mlp\.gate\."), ".mlp.router.")),
}
_EXPERT = re.compile(r"(\.experts\.[0-9]+)\.(w1|w2|w3)\.")
_PROJECTIONS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def has_guessing_part(config: Mapping[str, Any], tensors: Collection[str]) -> bool:
    """Whether files with these tensors hold a part that guesses several tokens at once."""
    guessing = _guessing_layers(text_config(config))
    return any(GUESSING_PART.match(WRAPPERS.sub("", name)) or _is_in(guessing, name) for name in tensors)


def has_picture_part(config: Mapping[str, Any], tensors: Collection[str]) -> bool:
    """Whether files with these tensors hold a part for pictures that does not run."""
    return _leaves_out_pictures(config) and any(map(PICTURE_PART.match, tensors))


def _leaves_out_pictures(config: Mapping[str, Any]) -> bool:
    """Also a text part by its own family's name may lie in files that hold the whole."""
    return has_pictures_left_out(config) or str(named_config(config).get("model_type")) in TEXT_FAMILIES


def name_tensors(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """`tensors` by the names of the class that runs `config`, without those of a part for pictures."""
    leaves_out_pictures = _leaves_out_pictures(config)
    family = text_config(config).get("model_type")
    own = _RENAMES.get(family, TEXT_ALONE) if isinstance(family, str) else ()
    renames = TEXT_PART if has_pictures_left_out(config) else own
    module_renames = _MODULE_RENAMES.get(family, ()) if isinstance(family, str) else ()
    named: dict[str, TensorInfo] = {}
    guessing = _guessing_layers(text_config(config))
    for stored, tensor in tensors.items():
        if GUESSING_PART.match(WRAPPERS.sub("", stored)) or (leaves_out_pictures and PICTURE_PART.match(stored)):
            continue
        if _is_in(guessing, stored):
            continue
        name = _rename_module(_rename(WRAPPERS.sub("", stored), renames), module_renames)
        # Two tensors of one name would hide one of them: the second keeps its own, which no class knows.
        if name != stored and (name in tensors or name in named):
            name = stored
        named[name] = tensor if name == stored else replace(tensor, stored_name=stored)
    return named


def name_module(config: Mapping[str, Any], name: str) -> str:
    """What the class that runs `config` calls a module, as far as releases call its head or parts of an MLP
    otherwise."""
    family = text_config(config).get("model_type")
    renames = _MODULE_RENAMES.get(family, ()) if isinstance(family, str) else ()
    return _rename_module(f"{name}.", renames).removesuffix(".")


def _rename(name: str, renames: Renames) -> str:
    for pattern, replacement in renames:
        renamed, count = pattern.subn(replacement, name, count=1)
        if count:
            return renamed
    return name


def _rename_module(name: str, renames: Renames) -> str:
    for pattern, replacement in renames:
        name = pattern.sub(replacement, name, count=1)
    return _EXPERT.sub(lambda match: f"{match[1]}.{_PROJECTIONS[match[2]]}.", name, count=1)


def _is_in(layers: range, name: str) -> bool:
    return bool(layers) and (layer := LAYER.match(name)) is not None and int(layer[1]) in layers


def _guessing_layers(text: Mapping[str, Any]) -> range:
    """The numbers of layers behind the last, which guess further tokens."""
    usual = 1 if text.get("model_type") in GUESSING_LAYERS else 0
    count = next((text[name] for name in ("num_nextn_predict_layers", "num_mtp_layers") if name in text), usual)
    begin = text.get("num_hidden_layers")
    return range(begin, begin + count) if is_whole(begin) and is_whole(count) and 0 < count <= begin else range(0)
