"""Tensors under the names that transformers' classes have for them, whatever release or tool wrote the file.

The renames are those of transformers 5.23 (conversion_mapping.py) as far as they concern a language model. Parts for
pictures are left out: the text part is run alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from core.checkpoint.headers import TensorInfo
from core.checkpoint.text_config import has_pictures_left_out, text_config

Renames = tuple[tuple[re.Pattern[str], str], ...]

# The text part of a model with pictures, as its family's releases or transformers itself call it.
TEXT_PART: Renames = (
    (re.compile(r"^(model\.)?language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^(model\.)?language_model\.(model\.)?"), "model."),
    (re.compile(r"^model\.text_model\."), "model."),
)
PICTURE_PART = re.compile(
    r"^(model\.)?(visual|vision_tower|vision_model|vision_encoder|image_tower|video_tower|image_newline|vision_embed"
    r"|multi_modal_projector|mm_projector|projector|connector|perceiver|visual_embeddings_table|vte)\b"
)
# Heads that guess several tokens at once (multi-token prediction), which no class here reads.
GUESSING_PART = re.compile(r"^(model\.)?mtp\.")
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
    "gpt_neox": (
        (re.compile(r"^embed_out\."), "lm_head."),
        (re.compile(r"^(?=(layers|embed_in|final_layer_norm)\.)"), "gpt_neox."),
    ),
    "gptj": ((re.compile(_GPT2_MODULES), "transformer."),),
    "mpt": ((re.compile(r"^(?=(blocks|wte|norm_f)\.)"), "transformer."),),
    "opt": ((re.compile(r"^(?=decoder\.)"), "model."),),
}


def name_tensors(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """`tensors` by the names of the class that runs `config`, without those of a part for pictures."""
    has_pictures = has_pictures_left_out(config)
    family = text_config(config).get("model_type")
    own = _RENAMES.get(family, TEXT_ALONE) if isinstance(family, str) else ()
    renames = TEXT_PART if has_pictures else own
    named: dict[str, TensorInfo] = {}
    for stored, tensor in tensors.items():
        if GUESSING_PART.match(stored) or (has_pictures and PICTURE_PART.match(stored)):
            continue
        name = _rename(WRAPPERS.sub("", stored), renames)
        # Two tensors of one name would hide one of them: the second keeps its own, which no class knows.
        if name != stored and (name in tensors or name in named):
            name = stored
        named[name] = tensor if name == stored else replace(tensor, stored_name=stored)
    return named


def _rename(name: str, renames: Renames) -> str:
    for pattern, replacement in renames:
        renamed, count = pattern.subn(replacement, name, count=1)
        if count:
            return renamed
    return name
