"""Tensors get the names of the class that runs them, and a part for pictures is left out."""

from __future__ import annotations

from typing import Any

import pytest

from core.checkpoint.headers import TensorInfo
from core.checkpoint.tensor_names import has_guessing_part, has_picture_part, name_tensors

GEMMA: dict[str, Any] = {"model_type": "gemma3", "vision_config": {}}
QWEN: dict[str, Any] = {"model_type": "qwen2_5_vl", "vision_config": {}}


def named(config: dict[str, Any], *names: str) -> dict[str, str | None]:
    """What the tensors `names` are called, with what the file calls them where that is something else."""
    tensors = {name: TensorInfo("f", "F16", (4,), 0, 8) for name in names}
    return {name: tensor.stored_name for name, tensor in name_tensors(config, tensors).items()}


@pytest.mark.parametrize(
    ("config", "stored", "name"),
    [
        (GEMMA, "language_model.model.layers.3.mlp.up_proj.qweight", "model.layers.3.mlp.up_proj.qweight"),
        (GEMMA, "model.language_model.layers.3.mlp.up_proj.qweight", "model.layers.3.mlp.up_proj.qweight"),
        (GEMMA, "model.language_model.embed_tokens.weight", "model.embed_tokens.weight"),
        ({**GEMMA, "model_type": "llava"}, "language_model.lm_head.weight", "lm_head.weight"),
        ({**GEMMA, "model_type": "smolvlm"}, "model.text_model.layers.0.mlp.up_proj.scales",
         "model.layers.0.mlp.up_proj.scales"),
        ({**QWEN, "model_type": "qwen3_5"}, "model.language_model.language_model.layers.0.mlp.up_proj.scales",
         "model.layers.0.mlp.up_proj.scales"),
        ({"model_type": "gpt_neox"}, "embed_out.weight", "lm_head.weight"),
        ({"model_type": "gpt_neox"}, "layers.0.attention.dense.qweight", "gpt_neox.layers.0.attention.dense.qweight"),
        ({"model_type": "bloom"}, "h.0.mlp.dense_h_to_4h.bias", "transformer.h.0.mlp.dense_h_to_4h.bias"),
        ({"model_type": "RefinedWeb"}, "word_embeddings.weight", "transformer.word_embeddings.weight"),
        ({"model_type": "llama"}, "layers.0.mlp.up_proj.qweight", "model.layers.0.mlp.up_proj.qweight"),
        ({"model_type": "mistral"}, "language_model.model.norm.weight", "model.norm.weight"),
        ({"model_type": "qwen2"}, "base_model.model.model.norm.weight", "model.norm.weight"),
        ({"model_type": "gpt2"}, "_orig_mod.h.0.ln_1.weight", "transformer.h.0.ln_1.weight"),
        ({"model_type": "opt"}, "decoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"),
        ({"model_type": "mixtral"}, "model.layers.0.block_sparse_moe.experts.7.w1.qweight",
         "model.layers.0.mlp.experts.7.gate_proj.qweight"),
        ({"model_type": "mixtral"}, "model.layers.0.block_sparse_moe.experts.7.w2.scales",
         "model.layers.0.mlp.experts.7.down_proj.scales"),
        ({"model_type": "mixtral"}, "model.layers.0.mlp.experts.7.w3.qweight",
         "model.layers.0.mlp.experts.7.up_proj.qweight"),
        ({"model_type": "mixtral"}, "model.layers.0.block_sparse_moe.gate.weight", "model.layers.0.mlp.gate.weight"),
        ({"model_type": "phimoe"}, "model.layers.0.block_sparse_moe.gate.weight", "model.layers.0.mlp.router.weight"),
        ({"model_type": "minimax_m2"}, "model.layers.0.block_sparse_moe.e_score_correction_bias",
         "model.layers.0.mlp.e_score_correction_bias"),
        ({"model_type": "ernie4_5_moe"}, "model.layers.1.mlp.moe_statics.e_score_correction_bias",
         "model.layers.1.mlp.gate.moe_statics.e_score_correction_bias"),
        ({"model_type": "gpt_oss"}, "model.layers.0.mlp.experts.gate_up_projs.3.qweight",
         "model.layers.0.mlp.experts.3.gate_up_proj.qweight"),
        ({"model_type": "gpt_oss"}, "model.layers.0.mlp.router.linear.bias", "model.layers.0.mlp.router.bias"),
        ({"model_type": "granitemoe"}, "model.layers.0.block_sparse_moe.input_linear.3.linear.qweight",
         "model.layers.0.block_sparse_moe.experts.3.gate_up_proj.qweight"),
        ({"model_type": "granitemoe"}, "model.layers.0.block_sparse_moe.output_linear.weight",
         "model.layers.0.block_sparse_moe.experts.down_proj"),
    ],
)  # fmt: skip
def test_a_tensor_has_the_name_of_its_class(config: dict[str, Any], stored: str, name: str) -> None:
    assert named(config, stored) == {name: stored}


@pytest.mark.parametrize(
    ("config", "stored"),
    [
        (QWEN, "model.layers.0.mlp.up_proj.qweight"),
        (QWEN, "lm_head.weight"),
        (QWEN, "something.new.weight"),
        ({"model_type": "gpt_neox"}, "gpt_neox.layers.0.attention.dense.qweight"),
        ({"model_type": "llama"}, "embed_out.weight"),
        ({"model_type": "gpt_neox"}, "language_model.gpt_neox.final_layer_norm.weight"),
        ({"model_type": ["gemma3"], "vision_config": {}}, "language_model.model.norm.weight"),
    ],
)
def test_every_other_tensor_keeps_its_name(config: dict[str, Any], stored: str) -> None:
    assert named(config, stored) == {stored: None}


@pytest.mark.parametrize(
    "stored",
    [
        "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
        "model.visual.blocks.0.attn.qkv.weight",
        "visual.patch_embed.proj.weight",
        "multi_modal_projector.linear_1.bias",
        "model.connector.modality_projection.proj.weight",
        "image_newline",
    ],
)
def test_a_part_for_pictures_is_left_out_only_where_the_text_runs_alone(stored: str) -> None:
    assert named(QWEN, stored) == {}
    assert named({"model_type": "llama"}, stored) == {stored: None}


def test_two_tensors_of_one_name_do_not_hide_one_another() -> None:
    two = ("language_model.model.norm.weight", "model.language_model.norm.weight")
    assert named(GEMMA, *two) == {"model.norm.weight": two[0], two[1]: None}
    two = ("embed_out.weight", "lm_head.weight")
    assert named({"model_type": "gpt_neox"}, *two) == dict.fromkeys(two)


@pytest.mark.parametrize("config", [{"model_type": "glm4_moe"}, {"model_type": "new", "num_nextn_predict_layers": 1}])
def test_a_layer_behind_the_last_that_guesses_tokens_is_left_out(config: dict[str, Any]) -> None:
    """GLM-4.5 has it under a number of its own, which once made the files contradict the configuration."""
    kept, guessing, unknown = (f"model.layers.{number}.input_layernorm.weight" for number in (45, 46, 47))
    assert named({**config, "num_hidden_layers": 46}, kept, guessing, unknown) == {kept: None, unknown: None}
    assert named({"model_type": "llama", "num_hidden_layers": 46}, guessing) == {guessing: None}
    assert named({**config, "num_hidden_layers": "46"}, guessing) == {guessing: None}
    # What a person is told of the model says so too.
    assert has_guessing_part({**config, "num_hidden_layers": 46}, [kept, guessing])
    assert not has_guessing_part({**config, "num_hidden_layers": 46}, [kept, unknown])


@pytest.mark.parametrize(("family", "is_left_out"), [("qwen3_5_text", True), ("qwen2_vl_text", True), ("llama", False)])
def test_a_text_part_in_the_files_of_the_whole_is_run_without_its_part_for_pictures(
    family: str, is_left_out: bool
) -> None:
    """Of a plain family nobody knows what such a tensor is, and the model is refused."""
    name, config = "model.visual.blocks.0.attn.qkv.weight", {"model_type": family}
    assert (named(config, name) == {}) == is_left_out
    assert has_picture_part(config, [name]) == is_left_out
