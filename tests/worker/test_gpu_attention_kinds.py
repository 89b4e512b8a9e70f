"""On a GPU: models of each kind of attention, in captured steps. Run with `pytest -m gpu` on a GPU host."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.attention_kinds import KINDS, check_answers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
# Whose layers are fused: what others have between their parts no fused layer has.
FUSED = ("qwen3", "qwen3_5_text")


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """An engine has its process to itself; here one follows another, and other tests come after."""
    gc.collect()
    torch.cuda.empty_cache()
    with torch.inference_mode():
        yield
    torch.cuda.set_stream(torch.cuda.default_stream())
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
def test_captured_steps_answer_as_the_class_would(
    tmp_path: Path, config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        facts = check_answers(tmp_path / "model", config, on_cpu=False)
    assert facts.captured and facts.memory is not None
    assert facts.memory.peak_bytes <= facts.memory.plan.allocated
    if config["model_type"] in FUSED:
        assert f"fused: {config['num_hidden_layers']} layers" in caplog.text
