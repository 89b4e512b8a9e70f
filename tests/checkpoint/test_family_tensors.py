"""The table of the tensors of families is what transformers' classes have."""

from __future__ import annotations

import json
from typing import Any

import pytest

from core.checkpoint.completeness import refuse_unlike
from core.checkpoint.computed import COMPUTED
from core.checkpoint.families import families
from core.checkpoint.family_tensors import TABLE, family_tensors
from core.checkpoint.judgement import judge
from core.checkpoint.layer_halves import layer_halves
from core.checkpoint.text_config import PICTURE_FAMILIES, SAME_AS, text_config
from tests.support.family_tensors import NUM_LAYERS, built_models, checked_families, halves_in, layers_of, table


@pytest.mark.slow
def test_the_table_is_that_of_the_classes() -> None:
    """After another release of transformers: python -m tests.support.family_tensors"""
    assert TABLE.read_text("utf-8") == table()


def runs(config: dict[str, Any]) -> bool:
    return judge("m", config) is None


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in checked_families() if families()[name].kind])
def test_what_a_class_builds_is_whole_and_its_layers_are_as_told(family: str) -> None:
    """No good model of the family is refused, whether its config.json is a release's or written by transformers."""
    for more, model in built_models(family):
        written = json.loads(model.config.to_json_string(use_diff=False))
        for config in ({"model_type": family, "num_hidden_layers": NUM_LAYERS, **more}, written):
            if runs(config):
                told = layer_halves(text_config(config), NUM_LAYERS)
                assert told == [halves_in(names) for names in layers_of(model)], more
                names = {name for name in model.state_dict() if not COMPUTED.search(name)}
                assert refuse_unlike("m", config, names, {}, NUM_LAYERS) is None, more


def test_every_family_that_runs_and_every_text_part_is_in_it() -> None:
    texts = {SAME_AS.get(text, text) for text in PICTURE_FAMILIES.values()}
    assert {*checked_families(), *texts} == set(family_tensors())


def test_what_is_needed_is_known_and_heads_are_never_needed() -> None:
    for tensors in family_tensors().values():
        assert tensors.needed < tensors.known
        assert not [name for name in tensors.needed if name.endswith(("lm_head.weight", "embed_out.weight"))]
