"""Quantizing on a real GPU: within its plan, and to what the CPU makes of the same model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.checkpoint.checkpoint import read_checkpoint
from core.memory.sizes import MIB
from core.quantize.options import QuantizeOptions
from core.quantize.plan import plan_job
from core.quantize.queue import QuantizeQueue
from core.quantize.target import folder_target
from tests.support.plain_models import make_plain

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
# The least that has whole groups.
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1}
# What torch's allocator rounds up, of so small a model.
ALLOWANCE_BYTES = 256 * MIB


def test_a_model_is_quantized_on_a_gpu_within_its_plan(models: Path, tmp_path: Path) -> None:
    """Of a family that gptqmodel can go on with after a break."""
    target = folder_target(make_plain(tmp_path / "plain", **SIZES))
    options = QuantizeOptions()
    plan = plan_job(target.model, options, "cuda:0")
    queue = QuantizeQueue()
    job = queue.add(target, options, "cuda:0", "made")
    assert job.wait(280)
    queue.close()
    state = job.snapshot()
    assert state.error is None and state.result is not None
    read_checkpoint(models / "made").require_runs()
    assert 0 < state.result["peak_vram_bytes"] <= plan.vram_bytes + ALLOWANCE_BYTES
    for language, before in state.result["before"].items():
        assert state.result["after"][language] == pytest.approx(before, rel=0.2)
