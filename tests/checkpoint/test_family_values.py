"""Values of a kind that a family's class refuses are told before a download."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import CONFIG_MAPPING

from core.checkpoint.family_values import SETTLED, TABLE, family_values, wrong_values
from core.checkpoint.text_config import PICTURE_FAMILIES
from tests.support.family_values import declared_families, table

# Lists of two numbers, which a class holds as a pair, and a part that it makes an object of before.
PAIRS, MADE = "time_step_limit", ("text_config", "vision_config")
OF_EACH_KIND: tuple[Any, ...] = (None, True, 1, 1.5, "1", [], [1], ["1"], [1.5], {"a": 1})


def test_the_table_says_what_transformers_classes_declare() -> None:
    """After another release of transformers: python -m tests.support.family_values"""
    assert TABLE.read_text("utf-8") == table()
    assert set(declared_families()) == set(family_values())


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "ernie4_5_moe", "bamba", "gemma3", "falcon", "phi3"])
def test_a_value_is_refused_where_the_class_refuses_its_kind(family: str) -> None:
    # Without a part of its own for the text, the whole is held to be one.
    parts: dict[str, Any] = {"text_config": {}} if family in PICTURE_FAMILIES else {}
    for name in family_values()[family].keys() - {*SETTLED, *MADE, PAIRS}:
        for value in OF_EACH_KIND:
            config = {"model_type": family, **parts, name: value}
            refused = [found for found, _ in wrong_values(config)]
            try:
                CONFIG_MAPPING[family].from_dict(config)
            except StrictDataclassFieldValidationError as error:
                # One of another name, or one that is out of range, comes from what the class makes of it.
                assert refused == [name] or "TypeError" not in str(error) or f"'{name}'" not in str(error)
            except Exception:  # Classes hold values against one another too.
                pass
            else:
                assert refused == []


def test_the_values_of_both_parts_of_a_model_with_pictures_are_looked_at() -> None:
    text = {"model_type": "qwen2", "hidden_act": 5}
    assert list(wrong_values({"model_type": "internvl", "text_config": text})) == [("hidden_act", 5)]
    text = {"rms_norm_eps": "small"}
    assert list(wrong_values({"model_type": "gemma3", "text_config": text})) == [("rms_norm_eps", "small")]
    outer = {"model_type": "internvl", "image_token_id": "x", "text_config": {}}
    assert list(wrong_values(outer)) == [("image_token_id", "x")]


def test_numbers_that_json_does_not_have_are_numbers() -> None:
    infinite = {"__float__": "Infinity"}
    assert not list(wrong_values({"model_type": "llama", "rms_norm_eps": infinite}))
    assert list(wrong_values({"model_type": "llama", "hidden_size": infinite}))


@pytest.mark.parametrize("model_type", [None, 5, ["llama"], {}, "unknown"])
def test_a_config_of_any_kind_is_looked_at(model_type: Any) -> None:
    for text in (None, 3, {"model_type": [1]}, {"hidden_size": None}):
        assert not list(wrong_values({"model_type": model_type, "text_config": text}))
