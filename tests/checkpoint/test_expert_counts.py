"""How many experts there are and how many a token goes through, where config.json is silent."""

from __future__ import annotations

import pytest
from transformers import CONFIG_MAPPING

from core.checkpoint.expert_counts import CHOSEN, COUNTS, USUAL, untold_counts
from core.checkpoint.experts import first_value
from core.checkpoint.families import families
from core.checkpoint.text_config import text_config


@pytest.mark.parametrize("family", sorted(USUAL))
def test_the_usual_numbers_of_a_family_are_its_class_s(family: str) -> None:
    theirs = CONFIG_MAPPING[family]()
    for names in (COUNTS, CHOSEN):
        found = {name: getattr(theirs, name) for name in names if hasattr(theirs, name)}
        assert first_value(text_config({"model_type": family}), names) in {*found.values(), None} and found
        assert {name: found[name] for name in names if name in USUAL[family]}.items() <= USUAL[family].items()
        if set(found.values()) != {None}:
            assert USUAL[family].keys() & found.keys()


def test_every_mixture_that_runs_is_in_the_table() -> None:
    mixtures = {one.name for one in families().values() if one.runs and one.kind == "experts"}
    assert mixtures <= set(USUAL)


def test_what_a_configuration_tells_by_any_name_is_not_added() -> None:
    assert untold_counts("qwen3_moe", {}) == {"num_experts": 128, "num_experts_per_tok": 8}
    # transformers writes the one name, releases the other.
    assert untold_counts("qwen3_moe", {"num_local_experts": 4}) == {"num_experts_per_tok": 8}
    assert untold_counts("llama", {}) == {}
    assert first_value(text_config({"model_type": "qwen3_moe", "num_local_experts": 4}), COUNTS) == 4
    # A text part has its own class's numbers, not those of the family that runs it.
    part = {"model_type": "qwen3_vl_moe", "text_config": {}}
    assert first_value(text_config(part), COUNTS) == 60
