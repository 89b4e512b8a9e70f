"""Mixtures of experts compute what transformers' class does, from files that have each expert by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import defuser
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from core.checkpoint.checkpoint import read_checkpoint
from core.checkpoint.experts import FLOAT_ROUTERS
from core.checkpoint.layers import Experts
from core.worker.model.model_config import plain_text_config
from tests.support.checkpoints import Recipe
from tests.support.family_checkpoints import ExpertLayout, make_family_checkpoint
from tests.support.family_checks import SIZES, check_family
from tests.support.packed import repack_as_awq

pytestmark = pytest.mark.slow

Rename = Callable[[str], str]
FOUR: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
SMALL: dict[str, Any] = {**SIZES, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


DELTA: dict[str, Any] = {"head_dim": 16, "num_hidden_layers": 2, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
                         "linear_key_head_dim": 16, "linear_value_head_dim": 32,
                         "layer_types": ["linear_attention", "full_attention"]}  # fmt: skip
PICTURES: dict[str, Any] = {"vision_config": {"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 64,
                                              "intermediate_size": 64, "patch_size": 14},
                            "image_token_id": 5, "video_token_id": 5}  # fmt: skip
SHARED: dict[str, Any] = {**SMALL, "shared_expert_intermediate_size": 96}


def unchanged(name: str) -> str:
    return name


def as_mixtral(name: str) -> str:
    """Of the releases of 2023 and 2024."""
    for ours, theirs in (("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3")):
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name.replace(".mlp.router.", ".mlp.gate.").replace(".mlp.", ".block_sparse_moe.")


def as_ernie(name: str) -> str:
    return name.replace(".mlp.gate.moe_statics.", ".mlp.moe_statics.")


def as_granite(name: str) -> str:
    """Gate and up are one matrix in the releases too, and gptqmodel has a module in it for each expert."""
    name = re.sub(r"\.experts\.([0-9]+)\.gate_up_proj\.", r".input_linear.\1.linear.", name)
    name = re.sub(r"\.experts\.([0-9]+)\.down_proj\.", r".output_linear.\1.linear.", name)
    return name.replace(".router.weight", ".router.layer.weight")


FAMILIES: dict[str, tuple[dict[str, Any], Rename]] = {
    "qwen3_moe": ({"model_type": "qwen3_moe", **SMALL, "head_dim": 32, "norm_topk_prob": True}, unchanged),
    "qwen3_moe, every second layer": ({"model_type": "qwen3_moe", **SMALL, "decoder_sparse_step": 2}, unchanged),
    "qwen2_moe": ({"model_type": "qwen2_moe", **SMALL, "shared_expert_intermediate_size": 96}, unchanged),
    "mixtral": ({"model_type": "mixtral", **SIZES, **FOUR, "sliding_window": None}, as_mixtral),
    "mixtral as it is now": ({"model_type": "mixtral", **SIZES, **FOUR, "sliding_window": None}, unchanged),
    "phimoe": ({"model_type": "phimoe", **SIZES, **FOUR, "sliding_window": None}, as_mixtral),
    "olmoe": ({"model_type": "olmoe", **SIZES, "num_experts": 4, "num_experts_per_tok": 2}, unchanged),
    "glm4_moe": ({"model_type": "glm4_moe", **SIZES, "n_routed_experts": 4, "num_experts_per_tok": 2,
                  "moe_intermediate_size": 64, "n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 16,
                  "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.5, "use_qk_norm": True}, unchanged),
    "glm4_moe, in groups": ({"model_type": "glm4_moe", **SIZES, "n_routed_experts": 8, "num_experts_per_tok": 2,
                             "moe_intermediate_size": 64, "n_shared_experts": 1, "first_k_dense_replace": 0,
                             "head_dim": 16, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}, unchanged),
    "dots1": ({"model_type": "dots1", **SIZES, "n_routed_experts": 4, "num_experts_per_tok": 2,
               "moe_intermediate_size": 64, "n_shared_experts": 2, "first_k_dense_replace": 1, "head_dim": 16,
               "n_group": 1, "topk_group": 1, "layer_types": ["full_attention"] * 2}, unchanged),
    "ernie4_5_moe": ({"model_type": "ernie4_5_moe", **SIZES, "moe_num_experts": 4, "moe_k": 2, "head_dim": 16,
                      "moe_intermediate_size": 64, "moe_num_shared_experts": 2, "moe_layer_start_index": 1,
                      "moe_layer_end_index": 1, "moe_layer_interval": 1}, as_ernie),
    "hunyuan_v1_moe": ({"model_type": "hunyuan_v1_moe", **SIZES, "num_experts": 4, "moe_topk": [2, 2],
                        "head_dim": 16}, unchanged),
    "minimax_m2": ({"model_type": "minimax_m2", **SIZES, **FOUR, "head_dim": 16, "rotary_dim": 8}, as_mixtral),
    "granitemoe": ({"model_type": "granitemoe", **SIZES, **FOUR}, as_granite),
    "granitemoeshared": ({"model_type": "granitemoeshared", **SIZES, **FOUR, "shared_intermediate_size": 96},
                         as_granite),
    "granitemoehybrid": ({"model_type": "granitemoehybrid", **SIZES, **FOUR, "shared_intermediate_size": 96,
                          "layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 32,
                          "mamba_n_groups": 1, "mamba_d_state": 16}, as_granite),
    "exaone_moe": ({"model_type": "exaone_moe", **SMALL, "head_dim": 16, "n_group": 1, "topk_group": 1,
                    "num_shared_experts": 1, "first_k_dense_replace": 1, "sliding_window": 24,
                    "layer_types": ["sliding_attention", "full_attention"], "mlp_layer_types": ["dense", "sparse"]},
                   unchanged),
    "gpt_oss": ({"model_type": "gpt_oss", **SIZES, **FOUR, "head_dim": 16, "sliding_window": 24,
                 "layer_types": ["sliding_attention", "full_attention"], "rope_parameters": {
                     "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0,
                     "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}}, unchanged),
    "qwen3_next": ({"model_type": "qwen3_next", **SHARED, **DELTA, "decoder_sparse_step": 1}, unchanged),
    "qwen3_5_moe_text": ({"model_type": "qwen3_5_moe_text", **SHARED, **DELTA}, unchanged),
    "qwen3_5_moe": ({"model_type": "qwen3_5_moe", **PICTURES,
                     "text_config": {"model_type": "qwen3_5_moe_text", **SHARED, **DELTA}}, unchanged),
    "qwen3_vl_moe": ({"model_type": "qwen3_vl_moe", **PICTURES, "tie_word_embeddings": False,
                      "text_config": {"model_type": "qwen3_vl_moe_text", **SMALL, "head_dim": 16, "rope_parameters": {
                          "rope_type": "default", "mrope_section": [2, 3, 3], "mrope_interleaved": True,
                          "rope_theta": 10000.0}}}, unchanged),
    "lfm2_moe": ({"model_type": "lfm2_moe", **SMALL, "num_hidden_layers": 3, "num_dense_layers": 1,
                  "layer_types": ["conv", "full_attention", "conv"]}, unchanged),
}  # fmt: skip


@pytest.mark.parametrize(("config", "rename"), FAMILIES.values(), ids=FAMILIES.keys())
def test_a_mixture_of_experts_computes_what_its_class_does(
    tmp_path: Path, config: dict[str, Any], rename: Rename
) -> None:
    layout: ExpertLayout = "one" if rename is as_granite else "by name"
    model = make_family_checkpoint(tmp_path / "model", config, rename, layout=layout)
    layers = read_checkpoint(tmp_path / "model").layers
    assert any(isinstance(layer.mlp, Experts) and layer.mlp.experts_per_token == 2 for layer in layers)
    check_family(tmp_path / "model", model)


def test_what_training_asks_of_a_pass_is_nothing_that_an_answer_has(tmp_path: Path) -> None:
    """Fine-tunes of Mixtral come with router logits switched on: the first step failed."""
    model = make_family_checkpoint(tmp_path / "model", FAMILIES["olmoe"][0])
    path = tmp_path / "model" / "config.json"
    asked = {"output_router_logits": True, "output_hidden_states": True, "return_dict": False}
    path.write_text(json.dumps(json.loads(path.read_text()) | asked))
    check_family(tmp_path / "model", model)


def own_order(name: str) -> Recipe:
    return Recipe(act_order=True)


def of_some_bits(name: str) -> Recipe:
    """As `dynamic` has it: single experts, and single matrices of one, in 8 bit."""
    is_finer = ".experts.1." in name or name.endswith("experts.2.up_proj")
    return Recipe(bits=8) if is_finer else Recipe()


def partly_plain(name: str) -> Recipe | None:
    return None if ".experts.3." in name or name.endswith("experts.0.down_proj") else Recipe()


def wholly_plain(name: str) -> None:
    return None


def asymmetric(name: str) -> Recipe:
    return Recipe(symmetric=False)


@pytest.mark.parametrize("recipe_of", [own_order, of_some_bits, partly_plain, wholly_plain, asymmetric])
def test_each_matrix_of_an_expert_is_quantized_by_itself(
    tmp_path: Path, recipe_of: Callable[[str], Recipe | None]
) -> None:
    model = make_family_checkpoint(tmp_path / "model", FAMILIES["qwen3_moe"][0], recipe_of=recipe_of)
    check_family(tmp_path / "model", model)


def as_unsloth(name: str) -> str:
    name = re.sub(r"\.experts\.([0-9]+)\.(gate_up_proj|down_proj)\.", r".experts.\2s.\1.", name)
    return name.replace(".router.", ".router.linear.")


@pytest.mark.parametrize(("layout", "rename"), [("halves", unchanged), ("one", as_unsloth)])
def test_gpt_oss_runs_as_programs_cut_its_experts(tmp_path: Path, layout: ExpertLayout, rename: Rename) -> None:
    """Outputs of gate and up take turns in its own tensor: what gptqmodel calls gate_proj has both."""
    model = make_family_checkpoint(tmp_path / "model", FAMILIES["gpt_oss"][0], rename, layout=layout)
    check_family(tmp_path / "model", model)


def test_gptqmodel_cuts_gpt_oss_in_the_middle() -> None:
    """The library that it calls for it; should it change, core/checkpoint/experts.py has to."""
    config = {name: value for name, value in FAMILIES["gpt_oss"][0].items() if name != "model_type"}
    model: Any = AutoModelForCausalLM.from_config(CONFIG_MAPPING["gpt_oss"].from_dict(config))
    whole = torch.nn.init.normal_(model.model.layers[0].mlp.experts.gate_up_proj.data).clone()
    defuser.convert_model(model)
    gate = model.model.layers[0].mlp.experts.get_submodule("0.gate_proj").weight
    assert torch.equal(gate, whole[0].chunk(2, -1)[0].T)


@pytest.mark.parametrize("family", sorted({config["model_type"] for config, _ in FAMILIES.values()}))
def test_routers_are_in_float32_where_their_class_says_so(family: str) -> None:
    """What the plan counts follows from it."""
    config = plain_text_config(CONFIG_MAPPING[family]().get_text_config())
    names = AutoModelForCausalLM._model_mapping[type(config)]._keep_in_fp32_modules_strict or ()
    assert ("gate.weight" in names) == (family in FLOAT_ROUTERS)


def test_experts_run_from_another_container_too(tmp_path: Path) -> None:
    model = make_family_checkpoint(tmp_path / "gptq", FAMILIES["qwen3_moe"][0])
    repack_as_awq(tmp_path / "gptq", tmp_path / "awq")
    assert read_checkpoint(tmp_path / "awq").quantization.container == "AWQ"
    check_family(tmp_path / "awq", model)


def test_a_router_may_be_quantized_too(tmp_path: Path) -> None:
    config = FAMILIES["qwen3_moe"][0] | {"num_experts": 8}
    model = make_family_checkpoint(tmp_path / "model", config, routers=Recipe())
    assert "model.layers.0.mlp.gate" in read_checkpoint(tmp_path / "model").matrices
    check_family(tmp_path / "model", model)
