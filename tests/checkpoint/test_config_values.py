"""Values that a family's class cannot compute with are named before a download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING

from core.checkpoint.checkpoint import read_checkpoint
from core.checkpoint.config_values import refuse_values
from core.common.errors import CheckpointError
from tests.support.checkpoints import Recipe, make_checkpoint

SIZES: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
SCALED: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def refusal(family: str, **more: Any) -> tuple[str, ...] | None:
    error = refuse_values("m", {"model_type": family, **SIZES, **more})
    return None if error is None else (error.key, *map(str, list(error.params.values())[1:]))


def wrong(name: str, value: str) -> tuple[str, ...]:
    return "config_value", name, value


def test_a_value_of_the_wrong_kind_is_named_as_the_file_has_it(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", Recipe())
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": "1e-5"}))
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "model").require_runs()
    assert (caught.value.key, caught.value.params) == (
        "config_value",
        {"folder": "model", "name": "rms_norm_eps", "value": '"1e-5"'},
    )


@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe", "qwen3_next"])
def test_a_step_of_no_layers_is_refused_where_a_layer_asks_for_it(family: str) -> None:
    for value, text in ((0, "0"), (None, "null"), ("1", '"1"'), (1.0, "1.0"), (True, "true")):
        assert refusal(family, decoder_sparse_step=value) == wrong("decoder_sparse_step", text)
    assert refusal(family, decoder_sparse_step=-1) is None
    assert refusal(family, decoder_sparse_step=0, mlp_only_layers=[0]) == wrong("decoder_sparse_step", "0")
    assert refusal(family, decoder_sparse_step=0, mlp_only_layers=[0, 1]) is None
    assert refusal(family, decoder_sparse_step=0, num_experts=0) is None
    # Other families do not read it.
    assert refusal("mixtral", decoder_sparse_step=0) is None


@pytest.mark.parametrize("family", ["qwen3_5_text", "qwen3_5_moe_text"])
@pytest.mark.parametrize("rope", ["rope_parameters", "rope_scaling"])
def test_positions_of_three_numbers_take_three_parts(family: str, rope: str) -> None:
    for value in ([1, 1], [], None, 5, "abc", {"a": 1}, [1, "1", 1], [1, 1.0, 1]):
        assert refusal(family, **{rope: {"mrope_section": value}}) == wrong("mrope_section", json.dumps(value))
    # What they sum up to is not read, nor the first.
    for value in ([9, 9, 9], [1, 1, 1, 1], [None, 1, 1]):
        assert refusal(family, **{rope: {"mrope_section": value}}) is None
    assert refusal("qwen2", **{rope: {"mrope_section": [1]}}) is None


def test_no_more_than_a_whole_head_is_turned() -> None:
    for value, text in ((1.5, "1.5"), (-0.5, "-0.5"), ("0.5", '"0.5"'), (None, "null"), ([0.5], "[0.5]")):
        expected = wrong("partial_rotary_factor", text)
        assert refusal("glm4_moe", rope_parameters={"partial_rotary_factor": value}) == expected
        assert refusal("laguna", rope_parameters={"full_attention": {"partial_rotary_factor": value}}) == expected
        # A family that turns whole heads does not read it.
        assert refusal("llama", rope_parameters={"partial_rotary_factor": value}) is None
    for value in (0, 0.25, 1, 1.0, 1.01):
        assert refusal("glm4_moe", rope_parameters={"partial_rotary_factor": value}) is None
    assert refusal("phi", partial_rotary_factor=1.5) == wrong("partial_rotary_factor", "1.5")
    assert refusal("phi", partial_rotary_factor=None) == wrong("partial_rotary_factor", "null")
    assert refusal("glm", partial_rotary_factor=None) is None
    assert refusal("gpt_neox", rotary_pct=1.5) == wrong("rotary_pct", "1.5")
    assert refusal("gpt_neox", partial_rotary_factor=1.5) is None
    # Rope of another kind than the usual one is worked out for all families alike.
    linear = {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}
    assert refusal("llama", rope_scaling=linear) == wrong("partial_rotary_factor", "0.5")
    assert refusal("glm4_moe", rope_scaling=linear) is None


def test_a_rope_s_numbers_are_numbers_and_there() -> None:
    assert refusal("llama", rope_scaling=SCALED) is None
    for value, text in (("10000", '"10000"'), (None, "null"), ([1], "[1]")):
        assert refusal("llama", rope_theta=value) == wrong("rope_theta", text)
        assert refusal("llama", rope_parameters={"rope_theta": value}) == wrong("rope_theta", text)
        # It has none.
        assert refusal("gptj", rope_theta=value) is None
    assert refusal("llama", rope_theta=1) is None
    for name in ("factor", "low_freq_factor", "high_freq_factor"):
        assert refusal("llama", rope_scaling=SCALED | {name: "4"}) == wrong(name, '"4"')
        without = {one: value for one, value in SCALED.items() if one != name}
        assert refusal("llama", rope_scaling=without) == ("config_untold", name)
    assert refusal("llama", rope_scaling=SCALED | {"low_freq_factor": 0}) == wrong("low_freq_factor", "0")
    length = "original_max_position_embeddings"
    assert refusal("llama", rope_scaling=SCALED | {length: None}) == wrong(length, "null")
    assert refusal("llama", rope_scaling="linear") == wrong("rope_scaling", '"linear"')
    assert refusal("llama", rope_scaling={"rope_type": None}) == wrong("rope_type", "null")
    assert refusal("llama", rope_scaling={"rope_type": "yarn", "factor": None}) is None
    longrope = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": 2}
    assert refusal("phi3", rope_scaling=longrope) == wrong("long_factor", "2")


FULL = "full_attention"


def test_a_list_of_another_number_of_layers_is_refused() -> None:
    """As one that counts the layer which guesses a token too: the load failed on it."""
    for family in ("llama", "glm4_moe", "hy_v3", "qwen3_moe", "qwen3_next", "lfm2"):
        for found in (0, 1, 3):
            expected = ("config_list", "layer_types", str(found), "2")
            assert refusal(family, layer_types=[FULL] * found) == expected
        assert refusal(family, layer_types=[FULL] * 2) is None
    assert refusal("exaone_moe", mlp_layer_types=["dense"] * 3) == ("config_list", "mlp_layer_types", "3", "2")
    assert refusal("exaone_moe", mlp_layer_types=["dense", "thin"]) == wrong("mlp_layer_types", '["dense", "thin"]')
    # Of a family that has one number where others have a list.
    assert refusal("hunyuan_v1_moe", moe_topk=[2]) == ("config_list", "moe_topk", "1", "2")
    assert refusal("hunyuan_v1_moe", moe_topk=[2, 2, 2], num_experts=4) is None


def test_a_list_that_a_class_looks_up_may_be_longer_and_one_that_none_reads_anything() -> None:
    assert refusal("hy_v3", mlp_layer_types=["dense", "sparse", "sparse"]) is None
    assert refusal("hy_v3", mlp_layer_types=["dense"]) == ("config_list", "mlp_layer_types", "1", "2")
    assert refusal("qwen3_moe", mlp_layer_types=["dense"]) is None


@pytest.mark.parametrize("family", ["bamba", "falcon_h1"])
def test_kinds_of_layers_that_a_class_works_out_are_refused_whatever_they_are(family: str) -> None:
    kinds = ["attention", "mamba"]
    assert refusal(family, layer_types=kinds) == wrong("layer_types", json.dumps(kinds))
    assert refusal(family, layers_block_type=None) == wrong("layers_block_type", "null")
    assert refusal(family) is None


def test_what_no_default_tells_has_to_be_there() -> None:
    assert refusal("lfm2_moe") == ("config_untold", "layer_types")
    assert refusal("lfm2_moe", layer_types=["conv", FULL]) is None
    told = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
    for name in told:
        assert refusal("dots1", **told | {name: None}) == ("config_untold", name)
    assert refusal("dots1", **told) is None


@pytest.mark.parametrize(
    ("family", "more"),
    [(family, {"layer_types": [FULL] * 3}) for family in ("llama", "glm4_moe", "hy_v3", "qwen3_next", "bamba")]
    + [("falcon_h1", {"layer_types": ["hybrid"] * 2}), ("bamba", {"layers_block_type": None}),
       ("exaone_moe", {"mlp_layer_types": ["dense"]}), ("exaone_moe", {"mlp_layer_types": ["dense", "thin"]})],
)  # fmt: skip
def test_a_class_refuses_these_too(family: str, more: dict[str, Any]) -> None:
    with pytest.raises((StrictDataclassError, AttributeError, ValueError)):
        CONFIG_MAPPING[family].from_dict({"num_hidden_layers": 2, **more})
    assert refusal(family, **more) is not None


def test_a_longer_list_is_no_matter_to_a_class_that_looks_it_up() -> None:
    for family, more in (("hy_v3", {"mlp_layer_types": ["sparse"] * 3}), ("qwen3_moe", {"mlp_layer_types": ["dense"]})):
        CONFIG_MAPPING[family].from_dict({"num_hidden_layers": 2, **more})
        assert refusal(family, **more) is None
