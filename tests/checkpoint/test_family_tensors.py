"""The table of the tensors of families is what transformers' classes have."""

from __future__ import annotations

import pytest

from core.checkpoint.family_tensors import TABLE, family_tensors
from core.checkpoint.text_config import PICTURE_FAMILIES, SAME_AS
from tests.support.family_tensors import checked_families, table


@pytest.mark.slow
def test_the_table_is_that_of_the_classes() -> None:
    """After another release of transformers: python -m tests.support.family_tensors"""
    assert TABLE.read_text("utf-8") == table()


def test_every_family_that_runs_and_every_text_part_is_in_it() -> None:
    texts = {SAME_AS.get(text, text) for text in PICTURE_FAMILIES.values()}
    assert {*checked_families(), *texts} == set(family_tensors())


def test_what_is_needed_is_known_and_heads_are_never_needed() -> None:
    for tensors in family_tensors().values():
        assert tensors.needed < tensors.known
        assert not [name for name in tensors.needed if name.endswith(("lm_head.weight", "embed_out.weight"))]
