"""Which families of models run here, told by config.json and the names of the tensors: before a download.

Only what no load could run is refused. What these cannot tell, the load still does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.layers import text_config
from core.common.errors import CheckpointError, EngineError
from core.common.values import is_whole, quoted_json

# `model_type` of each language model that transformers 5.23 runs over our cache and attention, tried with a tiny model
# of each. The experts of a mixture have to be in one tensor a layer, as hardly any file has them.
FAMILIES = frozenset(
    """
    apertus arcee aria_text beam biogpt bitnet cohere cohere2 cohere2_moe cwm diffllama dots1 ernie4_5 ernie4_5_moe
    exaone4 exaone_moe flex_olmo gemma gemma2 gemma3_text glm glm4 glm4_moe glm4_moe_lite gpt_neox gpt_neox_japanese
    granite granitemoe granitemoehybrid granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax
    internlm3 iquestcoder jais2 jetmoe kolibri1 laguna lfm2 lfm2_moe lfm3 llama llama4_text mellum minimax_m2
    minimax_m3_vl_text ministral ministral3 mistral mixtral modernbert-decoder nanochat nemotron olmo olmo2 olmo3 olmoe
    opt persimmon phi phi3 phi4_multimodal phimoe qwen2 qwen2_moe qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe
    qwen3_next seed_oss smollm3 solar_open stablelm starcoder2 vaultgemma
    bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta
    roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl
    """.split()
)
# Families whose layers are recurrent unless `layer_types` says otherwise.
RECURRENT = frozenset(
    """
    bailing_hybrid bamba falcon_h1 falcon_mamba granitemoehybrid jamba kimi_linear mamba mamba2 minimax nemotron_h
    olmo_hybrid qwen3_5_moe_text qwen3_5_text qwen3_next qwen4_exp_text recurrent_gemma rwkv xlstm zamba zamba2
    """.split()
)
ATTENTION_LAYERS = frozenset(("full_attention", "sliding_attention", "attention"))
RECURRENT_LAYERS = frozenset(("linear_attention", "mamba", "conv", "recurrent", "hybrid", "hybrid_sliding"))
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# A tensor of one expert alone, and one of another part than a language model by itself has.
EXPERT = re.compile(r"\.experts\.[0-9]+\.")
OTHER_PART = re.compile(r"(model\.)?(visual|vision_tower|vision_model|audio_tower|language_model)\.")


def require_runnable(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError "family_…", or EngineError "layer_types", where no load could run `checkpoint`."""
    config, text = checkpoint.config, text_config(checkpoint.config)
    named, kinds = text.get("model_type"), _layer_kinds(text)
    family = named if isinstance(named, str) else ""
    is_known = not family or family in FAMILIES
    has_parts = any(OTHER_PART.match(name) for name in checkpoint.tensors)
    has_experts = any(EXPERT.search(name) for name in checkpoint.tensors)
    if has_parts or (not is_known and isinstance(config.get("vision_config"), dict)):
        raise _refusal(checkpoint, "family_vision")
    if has_experts or (not is_known and _has_experts(text)):
        raise _refusal(checkpoint, "family_moe")
    if kinds & RECURRENT_LAYERS or (family in RECURRENT and not kinds):
        raise _refusal(checkpoint, "family_recurrent")
    if _is_mla(text):
        raise _refusal(checkpoint, "family_mla")
    if kinds - ATTENTION_LAYERS:
        raise EngineError("layer_types", model=checkpoint.name, types=", ".join(sorted(kinds - ATTENTION_LAYERS)))
    if not is_known:
        raise _refusal(checkpoint, "family_remote_code" if config.get("auto_map") else "family_unknown")


def _refusal(checkpoint: Checkpoint, key: str) -> CheckpointError:
    family = checkpoint.config.get("model_type") or checkpoint.architecture
    return CheckpointError(key, model=checkpoint.name, family=quoted_json(family))


def _layer_kinds(text: Mapping[str, Any]) -> frozenset[str]:
    kinds = text.get("layer_types")
    return frozenset(map(quoted_json, kinds)) if isinstance(kinds, list) else frozenset()


def _has_experts(text: Mapping[str, Any]) -> bool:
    return any(is_whole(count := text.get(name)) and count > 1 for name in EXPERT_COUNTS)


def _is_mla(text: Mapping[str, Any]) -> bool:
    """Whether keys and values come from a shared latent vector and have lengths of their own (DeepSeek's MLA)."""
    key, rope, value = text.get("qk_nope_head_dim"), text.get("qk_rope_head_dim"), text.get("v_head_dim")
    if not text.get("kv_lora_rank") or not (is_whole(key) and is_whole(rope) and is_whole(value)):
        return False
    return key + rope != value
