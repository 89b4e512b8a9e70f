"""Which families gptqmodel quantizes, of those that run here: known before anything is fetched or begun."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.checkpoint.weight_files import ModelFiles
from core.common.values import quoted_json

# By the `model_type` of the whole model, as gptqmodel 7.6 has them; a tiny model of each was quantized and loaded. Of
# Llama 4 the experts that it writes fit no class of transformers.
KNOWN = frozenset(
    """
    apertus bloom codegen cohere cohere2 cohere2_moe dots1 ernie4_5 ernie4_5_moe exaone4 falcon falcon_h1 gemma gemma2
    gemma3 gemma3_text gemma4 gemma4_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neox gpt_oss gptj granite granitemoe
    granitemoehybrid hunyuan_v1_dense hunyuan_v1_moe hy_v3 internvl laguna lfm2 lfm2_moe llama minimax_m2 ministral3
    mistral mistral3 mixtral mpt olmo2 olmo3 olmoe opt ovis2 phi phi3 phimoe qwen2 qwen2_5_vl qwen2_moe qwen2_vl qwen3
    qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next qwen3_vl qwen3_vl_moe seed_oss smollm3
    smolvlm solar_open stablelm starcoder2
    """.split()
)
# gptqmodel 7.6 does not find their head again when it saves from the disk: the whole model lies in memory.
NOT_OFFLOADED = ("gpt_neox",)


def require_known(files: ModelFiles, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError where gptqmodel cannot quantize the family of the model that `files` are."""
    if (family := config.get("model_type")) not in KNOWN:
        raise files.error("quantize_family", family=quoted_json(family))
