"""Sizes that a config.json leaves out or calls by another name are those that transformers' class has."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from core.checkpoint.families import families
from core.checkpoint.text_config import (
    DEFAULTS,
    NAMES,
    OWN_NAMES,
    PICTURE_FAMILIES,
    SAME_AS,
    has_pictures_left_out,
    text_config,
)

# What a class leaves to the attention itself.
UNKNOWN_TO_CLASS = {("bloom", "max_position_embeddings")}


@pytest.mark.parametrize("family", sorted(DEFAULTS))
def test_the_defaults_of_a_family_are_its_class_s(family: str) -> None:
    theirs = CONFIG_MAPPING[family]()
    # Gemma 4 has several sizes of heads, of which the sliding layers' are those of no layer's own.
    theirs.allow_global_per_layer_attribute_access = True
    for name in NAMES:
        own = OWN_NAMES.get(family, {}).get(name, name)
        value = getattr(theirs, name, getattr(theirs, own, None))
        if (family, name) in UNKNOWN_TO_CLASS:
            assert value is None
        elif name in DEFAULTS[family]:
            assert (name, DEFAULTS[family][name]) == (name, value or False)
        elif name == "head_dim":
            assert value in (None, theirs.hidden_size // theirs.num_attention_heads)
        elif name == "num_key_value_heads":
            assert value in (None, 1, theirs.num_attention_heads)
        else:
            # Worked out as four times the hidden size.
            assert name == "intermediate_size" and value in (None, 4 * theirs.hidden_size)


@pytest.mark.parametrize("family", sorted(OWN_NAMES))
def test_a_family_s_own_names_are_those_that_its_class_takes(family: str) -> None:
    for name, own in OWN_NAMES[family].items():
        theirs = CONFIG_MAPPING[family].from_dict({"model_type": family, own: 48})
        if (name == "max_position_embeddings" and family == "bloom") or (
            own in ("n_layer", "n_head") and family == "falcon"
        ):
            continue  # The class does not know the one; the other is of the first files alone.
        assert getattr(theirs, name, getattr(theirs, own, None)) == 48, own
        assert text_config({"model_type": family, own: 48})[name] == 48


@pytest.mark.parametrize("family", sorted(PICTURE_FAMILIES))
def test_the_text_part_of_a_model_with_pictures_is_of_a_family_that_runs(family: str) -> None:
    theirs = CONFIG_MAPPING[family]().get_text_config()
    assert PICTURE_FAMILIES[family] == theirs.model_type
    for text in ({}, {"text_config": {}}, {"text_config": {"model_type": theirs.model_type}}):
        found = text_config({"model_type": family, "vision_config": {}, **text})
        assert found["model_type"] == SAME_AS.get(theirs.model_type, theirs.model_type)
        assert families()[found["model_type"]].runs and families()[family].runs
        assert found["hidden_size"] > 0


def test_a_release_s_text_part_without_sizes_has_its_class_s() -> None:
    """As Gemma 3's 4B and LLaVA's 7B were released."""
    gemma = {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34, "intermediate_size": 10240}
    found = text_config({"model_type": "gemma3", "vision_config": {}, "text_config": gemma})
    assert (found["vocab_size"], found["head_dim"], found["num_attention_heads"]) == (262208, 256, 8)
    assert (found["num_key_value_heads"], found["hidden_size"]) == (4, 2560)
    found = text_config({"model_type": "llava", "vision_config": {}, "text_config": {"model_type": "llama"}})
    assert (found["hidden_size"], found["num_hidden_layers"], found["intermediate_size"]) == (4096, 32, 11008)


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        ({"model_type": "falcon"}, 1),
        ({"model_type": "falcon", "multi_query": False, "num_attention_heads": 16}, 16),
        ({"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 8}, 8),
        ({"model_type": "falcon", "new_decoder_architecture": True, "num_attention_heads": 16}, 16),
        ({"model_type": "RefinedWeb", "n_layer": 60, "n_head": 128, "n_head_kv": 8}, 8),
        ({"model_type": "RefinedWebModel", "n_layer": 32, "n_head": 71}, 1),
        ({"model_type": "gpt_bigcode", "n_head": 12}, 1),
        ({"model_type": "gpt_bigcode", "n_head": 12, "multi_query": False, "num_key_value_heads": None}, 12),
    ],
)
def test_key_and_value_heads_follow_a_family_s_switch(config: dict[str, Any], heads: int) -> None:
    assert text_config(config)["num_key_value_heads"] == heads


@pytest.mark.parametrize("model_type", [None, 5, ["gemma3"], {}, "gemma3"])
def test_a_config_of_any_kind_is_read(model_type: Any) -> None:
    for text in (None, 3, {"model_type": [1]}, {"hidden_size": None}):
        config = {"model_type": model_type, "text_config": text, "vision_config": []}
        assert isinstance(text_config(config), dict)
        assert has_pictures_left_out(config) == (model_type == "gemma3")
