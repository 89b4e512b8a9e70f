"""What `fit --best` says of a model that is larger than the best."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cli.fit_best import best_cells, why_not
from core.common.terminal import Terminal
from core.library import catalogue
from core.library.recommended import recommended_models
from core.memory.device_memory import DeviceMemory
from core.memory.fit import check_fit
from core.memory.fit_report import FitReport

MODEL = recommended_models()[0]


def report(context_tokens: int = 1000) -> FitReport:
    """Llama-2 7B with room for about 1,200 tokens that are quick, and for 200 more."""
    checkpoint = catalogue.checkpoint(catalogue.find("TheBloke/Llama-2-7B-Chat-GPTQ"))
    return check_fit(checkpoint, [DeviceMemory.empty("a card", 5840, (8, 6))], context_tokens)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_why_a_larger_model_is_not_the_best_names_how_long_it_is_quick(language: str) -> None:
    found, out = report(), Terminal(language)
    assert found.quick_context
    said = why_not(MODEL, found, found.quick_context + 1, out)
    assert MODEL.repo in said and f" {found.quick_context} " in said and f" {found.quick_context + 1} " in said
    short = why_not(MODEL, found, found.max_context + 1, out)
    assert f" {found.max_context} " in short and short != said
    never = why_not(MODEL, replace(found, quick_context=None), 1, out)
    assert MODEL.repo in never and "CUDA" in never and "{" not in said + short + never


def test_a_load_that_is_slow_is_marked_in_the_table() -> None:
    marks = [best_cells(report(context_tokens), is_best=False)[0] for context_tokens in (1000, 1300, 1500)]
    assert marks == ["yes", "slow", "no"]
