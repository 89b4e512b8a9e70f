"""What gptqmodel 7.6 and defuser 0.0.28 take for granted of transformers' classes, and transformers 5.23 has otherwise.

Each of these families failed inside the libraries, most of them after minutes; with these few lines each is quantized.
"""

from __future__ import annotations

from typing import Any

import torch

# The modules of a mixture, in gptqmodel's words: experts by number, with the order in which their matrices are
# quantized, and a router that stays as it is.
EXPERTS = {"experts": {"#": ("gate_proj:0", "up_proj:0", "down_proj:1")}}


def install(family: str) -> None:
    """Let gptqmodel, in this process, take transformers' classes as they are, that of `family` without its pictures."""
    from defuser.modeling.unfused_moe.glm4_moe import LinearGlm4MoeMoE
    from gptqmodel.models.auto import MODEL_MAP
    from gptqmodel.models.base import BaseQModel
    from gptqmodel.models.definitions.ernie4_5_moe import Ernie4_5_MoeQModel
    from gptqmodel.models.definitions.granitemoe import GraniteMoeQModel
    from gptqmodel.models.definitions.granitemoehybrid import GraniteMoeHybridQModel
    from gptqmodel.models.definitions.internvl import InternVLQModel
    from gptqmodel.models.definitions.lfm2_moe import LFM2MoeQModel
    from gptqmodel.models.definitions.minimax_m2 import MiniMaxM2GPTQ
    from gptqmodel.models.definitions.mistral3 import Mistral3GPTQ
    from gptqmodel.models.moe_lifecycle import GateUpDownMoELifecycleHooks

    # Texts alone go through it: what makes pictures fit, and the packages for that, are not needed.
    own = MODEL_MAP[family]
    if own.require_load_processor:
        own.require_load_processor, own.require_pkgs = False, None
        own.prepare_dataset = BaseQModel.prepare_dataset
    # Both put a pass of an older transformers in the place of the class's own, which needs none any more.
    for definition in (Ernie4_5_MoeQModel, GraniteMoeHybridQModel):
        definition.require_monkeypatch = False
    # These look for experts by names that they had, find none and leave them all in 16 bit.
    for definition in (GraniteMoeQModel, GraniteMoeHybridQModel):
        definition.module_tree[-1]["block_sparse_moe:moe:?"] = {"router": ("router:!",), **EXPERTS}
    MiniMaxM2GPTQ.module_tree[-1]["mlp:moe"] = {"gate": ("gate:!",), **EXPERTS}
    MiniMaxM2GPTQ.module_tree[-1].pop("block_sparse_moe:moe", None)
    LFM2MoeQModel.module_tree[-1]["feed_forward:moe"] |= EXPERTS
    LFM2MoeQModel.module_tree[-1]["self_attn"] = ("q_proj:0", "k_proj:0", "v_proj:0", "out_proj:1")
    for definition in (LFM2MoeQModel, MiniMaxM2GPTQ):
        definition.moe_lifecycle_hooks = GateUpDownMoELifecycleHooks()
    # Its files name the text's part as InternVL's do, which gptqmodel knows of that one alone.
    Mistral3GPTQ.HF_CONVERSION_MAP_REVERSED = InternVLQModel.HF_CONVERSION_MAP_REVERSED
    LinearGlm4MoeMoE.route_tokens_to_experts = chosen_by_the_router


def chosen_by_the_router(block: Any, routed: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts of each token and their weights, both [tokens, experts a token]: GLM 4.5's router chooses itself."""
    _, weights, experts = routed
    return experts, weights


def complete(model: Any) -> None:
    """Fill what gptqmodel's empty `model` computes from the configuration and no file holds.

    gptqmodel makes such a tensor anew by building the module that owns it; this one is given to it by the whole model.
    """
    if model.config.model_type != "falcon_h1":
        return
    from transformers.models.falcon_h1.modeling_falcon_h1 import compute_mup_vector

    vector = compute_mup_vector(model.config)
    for layer in model.model.layers:
        layer.mamba.register_buffer("mup_vector", vector.clone(), persistent=False)
