"""On a GPU: models of each kind of attention, in captured steps. Run with `pytest -m gpu` on a GPU host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.attention_kinds import KINDS, check_answers
from tests.support.gpu_engines import Engines

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
# Whose layers are fused: what others have between their parts no fused layer has.
FUSED = ("qwen3", "qwen3_5_text")


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
def test_captured_steps_answer_as_the_class_would(tmp_path: Path, config: dict[str, Any], engines: Engines) -> None:
    facts = check_answers(tmp_path / "model", config, engines.open)
    assert facts.memory is not None
    assert facts.memory.peak_bytes <= facts.memory.plan.allocated
    if config["model_type"] in FUSED:
        assert f"fused: {config['num_hidden_layers']} layers" in str(engines.log)
