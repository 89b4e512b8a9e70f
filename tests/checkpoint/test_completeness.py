"""Files that lack weights are refused by the names of their tensors, before a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from core.checkpoint.checkpoint import read_checkpoint
from core.checkpoint.completeness import MAX_MISSING, refuse_unlike
from core.checkpoint.family_tensors import family_tensors
from core.checkpoint.layer_halves import layer_halves
from core.checkpoint.text_config import text_config
from core.common.errors import CheckpointError
from tests.support.checkpoints import WEIGHTS, Recipe, make_checkpoint

LLAMA: dict[str, Any] = {"model_type": "llama", "tie_word_embeddings": False}
NORM = "model.layers.{}.input_layernorm.weight"


def of_three_layers(config: dict[str, Any]) -> set[str]:
    """The tensors of an unquantized model, with all that its configuration can ask for."""
    family, found = family_tensors()[config["model_type"]], set[str]()
    text = text_config(config | {"num_hidden_layers": 3})
    for number, halves in enumerate(layer_halves(text, 3) or [()] * 3):
        own = frozenset[str]().union(*(family.halves.get(half, ()) for half in halves))
        others = frozenset[str]().union(*family.halves.values()) - own
        found |= {name.replace("*", str(number)) for name in family.known - others}
    return found


def refusal(config: dict[str, Any], tensors: set[str]) -> tuple[str, str, int] | None:
    error = refuse_unlike("m", config | {"num_hidden_layers": 3}, tensors, {}, 3)
    return None if error is None else (error.key, error.params["name"], error.params["count"])


def missing(config: dict[str, Any], *lost: str) -> str | None:
    """The first of the tensors that a model of `config` is said to lack without those `lost`."""
    found = refusal(config, of_three_layers(config) - set(lost))
    assert found is None or (found[0], found[2]) == ("missing_weight", len(lost))
    return found and found[1]


def test_a_layer_that_lacks_what_most_layers_have_is_incomplete() -> None:
    assert missing(LLAMA) is None
    assert missing(LLAMA, NORM.format(1)) == NORM.format(1)
    # So is one without what only some models of the family have.
    assert missing(LLAMA, "model.layers.2.self_attn.q_proj.bias") is None
    cohere = LLAMA | {"model_type": "cohere"}
    assert missing(cohere, "model.layers.2.self_attn.q_norm.weight") == "model.layers.2.self_attn.q_norm.weight"


def test_a_family_of_whose_layers_nothing_is_known_is_not_held_to_most_of_them() -> None:
    assert missing(LLAMA | {"model_type": "modernbert-decoder"}, "model.layers.0.attn_norm.weight") is None


MIXTURE: dict[str, Any] = {"model_type": "qwen3_moe", "mlp_only_layers": [1]}
LAYERS = ["linear_attention", "full_attention", "linear_attention"]


@pytest.mark.parametrize(
    ("config", "start"),
    [
        (MIXTURE, "2.mlp.gate"),
        (MIXTURE, "2.mlp.experts"),
        (MIXTURE, "2.self_attn"),
        # No other layer tells what the only dense one has.
        (MIXTURE, "1.mlp"),
        ({"model_type": "qwen3_next", "layer_types": LAYERS}, "1.self_attn"),
        ({"model_type": "qwen3_next", "layer_types": LAYERS}, "0.linear_attn"),
        ({"model_type": "qwen3_next", "layer_types": LAYERS}, "0.mlp.shared_expert_gate"),
        ({"model_type": "falcon_h1"}, "2.mamba.in_proj"),
        ({"model_type": "lfm2", "layer_types": ["conv", "full_attention", "conv"]}, "2.conv"),
        ({"model_type": "glm4_moe", "first_k_dense_replace": 2}, "2.mlp.gate.e_score_correction_bias"),
        ({"model_type": "ernie4_5_moe", "moe_layer_start_index": 0}, "1.mlp.gate.moe_statics"),
    ],
)
def test_a_part_that_one_layer_lacks_is_missing_where_layers_differ(config: dict[str, Any], start: str) -> None:
    """The verdict said yes to a mixture without the router of one layer, and the load no."""
    whole = of_three_layers(config)
    assert refusal(config, whole) is None
    lost = {name for name in whole if name.startswith(f"model.layers.{start}.") or name == f"model.layers.{start}"}
    found = refusal(config, whole - lost)
    assert found is not None and found[0] == "missing_weight" and found[1] in lost


def test_what_most_layers_of_a_kind_have_and_one_lacks_is_missing() -> None:
    """Such as norms that only some models of the family have."""
    config = {"model_type": "glm4_moe", "first_k_dense_replace": 0}
    norm = "model.layers.{}.self_attn.q_norm.weight"
    assert missing(config, norm.format(2)) == norm.format(2)
    assert missing(config, *(norm.format(number) for number in range(3))) is None


@pytest.mark.parametrize(
    ("written", "said", "name"),
    [
        # Experts in every layer, and a configuration that has them in every second.
        ({"model_type": "qwen3_moe"}, {"decoder_sparse_step": 2}, "model.layers.0.mlp.down_proj.weight"),
        ({"model_type": "qwen3_moe"}, {"decoder_sparse_step": -2}, "model.layers.0.mlp.down_proj.weight"),
        ({"model_type": "qwen2_moe"}, {"mlp_only_layers": [1]}, "model.layers.1.mlp.down_proj.weight"),
        (MIXTURE, {"mlp_only_layers": []}, "model.layers.1.mlp.experts.down_proj"),
        ({"model_type": "exaone_moe"}, {"mlp_layer_types": ["sparse"] * 3}, "model.layers.0.mlp.experts.down_proj"),
        # The layers in another order than in the files.
        ({"model_type": "qwen3_next", "layer_types": LAYERS}, {"layer_types": [*LAYERS[1:], LAYERS[1]]},
         "model.layers.0.self_attn.k_norm.weight"),
        ({"model_type": "granitemoehybrid", "layer_types": ["mamba", "attention", "mamba"]},
         {"layer_types": ["mamba", "mamba", "attention"]}, "model.layers.1.mamba.A_log"),
        ({"model_type": "bamba", "attn_layer_indices": [2]}, {"attn_layer_indices": [1]},
         "model.layers.1.self_attn.k_proj.weight"),
    ],
)  # fmt: skip
def test_layers_of_another_kind_than_the_configuration_says_are_refused(
    written: dict[str, Any], said: dict[str, Any], name: str
) -> None:
    found = refusal(written | said, of_three_layers(written))
    assert found is not None and found[:2] == ("missing_weight", name)


def test_experts_beside_the_mlp_of_a_dense_layer_have_no_place() -> None:
    experts = {f"model.layers.1.mlp.experts.{one}" for one in ("down_proj", "gate_up_proj")}
    found = refusal(MIXTURE, of_three_layers(MIXTURE) | experts)
    assert found == ("unexpected_weight", "model.layers.1.mlp.experts.down_proj", 2)


def of_experts(layer: int, count: int, *projections: str) -> set[str]:
    owner = f"model.layers.{layer}.mlp.experts"
    return {f"{owner}.{number}.{one}.weight" for number in range(count) for one in projections}


def test_an_expert_or_a_matrix_of_one_that_is_not_there_is_missing() -> None:
    config = {"model_type": "qwen3_moe", "num_experts": 4}
    whole = of_three_layers({"model_type": "qwen3_moe"}) | of_experts(1, 4, "gate_proj", "up_proj", "down_proj")
    assert refusal(config, whole) is None
    for lost in ("model.layers.1.mlp.experts.3.", "model.layers.1.mlp.experts.2.up_proj.", ".down_proj."):
        left = {name for name in whole if lost not in name or ".experts." not in name}
        found = refusal(config, left)
        assert found is not None and found[0] == "missing_weight" and lost in found[1]
    # Without a number in the configuration its class's counts: 128 of three matrices each.
    untold = {"model_type": "qwen3_moe"}
    assert refusal(untold, whole) == ("missing_weight", "model.layers.1.mlp.experts.10.down_proj.weight", 3 * 124)


def test_more_experts_than_the_configuration_says_are_told_with_both_numbers() -> None:
    """The load refused the fifth expert's matrix as one of another layout."""
    config = {"model_type": "qwen3_moe", "num_experts": 4}
    experts = of_experts(1, 5, "gate_proj", "up_proj", "down_proj")
    error = refuse_unlike("m", config | {"num_hidden_layers": 3}, of_three_layers(config) | experts, {}, 3)
    assert error is not None and (error.key, error.params) == (
        "config_experts",
        {"folder": "m", "name": "num_experts", "value": 4, "found": 5},
    )


def test_names_of_a_million_experts_make_no_endless_list() -> None:
    odd = {f"model.layers.{number}.mlp.experts.999999.up_proj.weight" for number in range(100)}
    for config in ({"model_type": "dots1"}, {"model_type": "dots1", "n_routed_experts": 2**40}):
        found = refusal(config, of_three_layers({"model_type": "dots1"}) | odd)
        assert found is not None and found[0] == "missing_weight" and found[2] == MAX_MISSING


def test_an_experts_tensor_that_its_family_has_no_place_for_is_refused() -> None:
    config = {"model_type": "qwen3_moe", "num_experts": 4}
    whole = of_three_layers({"model_type": "qwen3_moe"}) | of_experts(1, 4, "gate_proj", "up_proj", "down_proj")
    odd = "model.layers.1.mlp.experts.0.up_proj.bias"
    assert refusal(config, whole | {odd}) == ("unexpected_weight", odd, 1)


def test_an_embedding_and_a_head_of_its_own_have_to_be_there() -> None:
    assert missing(LLAMA, "model.embed_tokens.weight") == "model.embed_tokens.weight"
    assert missing(LLAMA, "lm_head.weight") == "lm_head.weight"
    assert missing(LLAMA | {"tie_word_embeddings": True}, "lm_head.weight") is None
    # Where config.json says nothing, the family's class decides, which is not asked here.
    assert missing({"model_type": "gemma"}, "lm_head.weight") is None
    # Of families whose layers differ the table tells what the head is called.
    whole = of_three_layers({"model_type": "qwen3_next"})
    for untied, lost in ((False, ("missing_weight", "lm_head.weight", 1)), (True, None)):
        config = {"model_type": "qwen3_next", "tie_word_embeddings": untied}
        assert refusal(config, whole | {"lm_head.weight"}) is None
        assert refusal(config, whole - {"lm_head.weight"}) == lost


def test_what_no_layer_has_and_every_model_of_the_family_needs_is_missing() -> None:
    """Such as a Qwen 3 that a tool wrote as if it were a Qwen 2."""
    lost = [f"model.layers.{number}.self_attn.q_norm.weight" for number in range(3)]
    assert missing(LLAMA | {"model_type": "qwen3"}, *lost) == lost[0]


def test_what_the_family_has_no_place_for_is_refused_before_a_download() -> None:
    own = {f"model.layers.{number}.self_attn.q_norm.weight" for number in range(3)}
    assert refusal(LLAMA, of_three_layers(LLAMA) | own) == ("unexpected_weight", min(own), 3)
    assert refusal(LLAMA, of_three_layers(LLAMA) | {"score.weight"}) == ("unexpected_weight", "score.weight", 1)
    # Nobody has listed what a family has that does not run.
    assert refusal(LLAMA | {"model_type": "olmo_hybrid"}, of_three_layers(LLAMA) | own) is None


def test_a_matrix_of_no_module_is_named_by_its_codes(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", Recipe())
    path = tmp_path / "model" / WEIGHTS
    tensors = load_file(path)
    extra = {name.replace("up_proj", "side_proj"): one for name, one in tensors.items() if ".1.mlp.up_proj" in name}
    save_file(tensors | extra, path)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "model").require_runs()
    named = caught.value.params["name"]
    assert (caught.value.key, named) == ("unexpected_weight", "model.layers.1.mlp.side_proj.qweight")


HARMLESS: dict[str, tuple[int, ...]] = {
    "mtp.layers.0.mlp.down_proj.weight": (64, 64),
    "model.mtp.norm.weight": (64,),
    "model.layers.0.self_attn.rotary_emb.inv_freq": (8,),
    "model.layers.0.self_attn.k_scale": (1,),
    "gptq_bits": (1,),
    # auto-gptq wrote zeros.
    "model.layers.0.mlp.up_proj.bias": (128,),
}


def test_what_no_model_needs_harms_none(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", Recipe())
    path = tmp_path / "model" / WEIGHTS
    save_file(load_file(path) | {name: np.zeros(shape, np.float16) for name, shape in HARMLESS.items()}, path)
    checkpoint = read_checkpoint(tmp_path / "model")
    checkpoint.require_runs()
    assert not any("mtp" in name for name in checkpoint.tensors)


@pytest.mark.parametrize("part", ["qzeros", "scales"])
def test_a_matrix_without_one_of_its_tensors_is_incomplete(tmp_path: Path, part: str) -> None:
    make_checkpoint(tmp_path / "model", Recipe())
    path, lost = tmp_path / "model" / WEIGHTS, f"model.layers.1.mlp.up_proj.{part}"
    save_file({name: value for name, value in load_file(path).items() if name != lost}, path)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "model").require_runs()
    assert (caught.value.key, caught.value.params["name"]) == ("missing_weight", lost)


def test_a_quantized_embedding_is_refused_as_one(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", Recipe())
    path = tmp_path / "model" / WEIGHTS
    tensors = load_file(path)
    rows, columns = tensors.pop("model.embed_tokens.weight").shape
    tensors |= {
        "model.embed_tokens.qweight": np.zeros((rows // 8, columns), np.int32),
        "model.embed_tokens.qzeros": np.zeros((rows // 32, columns // 8), np.int32),
        "model.embed_tokens.scales": np.ones((rows // 32, columns), np.float16),
    }
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "model").require_runs()
    assert caught.value.key == "quantized_embedding"
