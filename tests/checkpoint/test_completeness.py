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
from core.common.errors import CheckpointError
from tests.support.checkpoints import WEIGHTS, Recipe, make_checkpoint

LLAMA: dict[str, Any] = {"model_type": "llama", "tie_word_embeddings": False}
NORM = "model.layers.{}.input_layernorm.weight"


def of_three_layers(family: str) -> set[str]:
    """The tensors of an unquantized model, with all that its configuration can ask for."""
    return {name.replace("*", str(number)) for name in family_tensors()[family].known for number in range(3)}


def refusal(config: dict[str, Any], tensors: set[str]) -> tuple[str, str, int] | None:
    error = refuse_unlike("m", config, tensors, {}, 3)
    return None if error is None else (error.key, error.params["name"], error.params["count"])


def missing(config: dict[str, Any], *lost: str) -> str | None:
    """The first of the tensors that a model of `config` is said to lack without those `lost`."""
    found = refusal(config, of_three_layers(config["model_type"]) - set(lost))
    assert found is None or (found[0], found[2]) == ("missing_weight", len(lost))
    return found and found[1]


def test_a_layer_that_lacks_what_most_layers_have_is_incomplete() -> None:
    assert missing(LLAMA) is None
    assert missing(LLAMA, NORM.format(1)) == NORM.format(1)
    # So is one without what only some models of the family have.
    assert missing(LLAMA, "model.layers.2.self_attn.q_proj.bias") is None
    cohere = LLAMA | {"model_type": "cohere"}
    assert missing(cohere, "model.layers.2.self_attn.q_norm.weight") == "model.layers.2.self_attn.q_norm.weight"


def test_a_family_whose_layers_differ_is_not_held_to_its_other_layers() -> None:
    assert missing({"model_type": "qwen3_moe"}, "model.layers.2.mlp.gate.weight") is None
    assert missing({"model_type": "qwen3_moe"}, NORM.format(2)) == NORM.format(2)
    assert missing(LLAMA | {"model_type": "modernbert-decoder"}, "model.layers.0.attn_norm.weight") is None


def of_experts(layer: int, count: int, *projections: str) -> set[str]:
    owner = f"model.layers.{layer}.mlp.experts"
    return {f"{owner}.{number}.{one}.weight" for number in range(count) for one in projections}


def test_an_expert_or_a_matrix_of_one_that_is_not_there_is_missing() -> None:
    config = {"model_type": "qwen3_moe", "num_experts": 4}
    whole = of_three_layers("qwen3_moe") | of_experts(1, 4, "gate_proj", "up_proj", "down_proj")
    assert refusal(config, whole) is None
    for lost in ("model.layers.1.mlp.experts.3.", "model.layers.1.mlp.experts.2.up_proj.", ".down_proj."):
        left = {name for name in whole if lost not in name or ".experts." not in name}
        found = refusal(config, left)
        assert found is not None and found[0] == "missing_weight" and lost in found[1]
    # Without a number in the configuration the largest one counts.
    assert refusal({"model_type": "qwen3_moe"}, whole - of_experts(1, 3, "up_proj"))[2] == 3  # type: ignore[index]


def test_names_of_a_million_experts_make_no_endless_list() -> None:
    odd = {f"model.layers.{number}.mlp.experts.999999.up_proj.weight" for number in range(100)}
    for config in ({"model_type": "qwen3_moe"}, {"model_type": "qwen3_moe", "num_experts": 2**40}):
        found = refusal(config, of_three_layers("qwen3_moe") | odd)
        assert found is not None and found[0] == "missing_weight" and found[2] == MAX_MISSING


def test_an_experts_tensor_that_its_family_has_no_place_for_is_refused() -> None:
    config = {"model_type": "qwen3_moe", "num_experts": 4}
    whole = of_three_layers("qwen3_moe") | of_experts(1, 4, "gate_proj", "up_proj", "down_proj")
    odd = "model.layers.1.mlp.experts.0.up_proj.bias"
    assert refusal(config, whole | {odd}) == ("unexpected_weight", odd, 1)


def test_an_embedding_and_a_head_of_its_own_have_to_be_there() -> None:
    assert missing(LLAMA, "model.embed_tokens.weight") == "model.embed_tokens.weight"
    assert missing(LLAMA, "lm_head.weight") == "lm_head.weight"
    assert missing(LLAMA | {"tie_word_embeddings": True}, "lm_head.weight") is None
    # Where config.json says nothing, the family's class decides, which is not asked here.
    assert missing({"model_type": "gemma"}, "lm_head.weight") is None
    # Of families whose layers differ the table tells what the head is called.
    whole = of_three_layers("qwen3_next")
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
    assert refusal(LLAMA, of_three_layers("llama") | own) == ("unexpected_weight", min(own), 3)
    assert refusal(LLAMA, of_three_layers("llama") | {"score.weight"}) == ("unexpected_weight", "score.weight", 1)
    # Nobody has listed what a family has that does not run.
    assert refusal(LLAMA | {"model_type": "olmo_hybrid"}, of_three_layers("llama") | own) is None


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
