"""EoRA's repairs of a quantized model, which are LoRA adapters, as gptqmodel computes and writes them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from gptqmodel.adapter.adapter import Lora
from gptqmodel.eora.eora import eora_compute_lora
from gptqmodel.models.writer import ModelWriter
from safetensors.torch import load_file

from core.checkpoint.adapters import read_adapter
from core.checkpoint.checkpoint import read_checkpoint
from core.memory.adapter_room import adaptable_matrices, match_adapter
from tests.support.checkpoints import make_checkpoint

RANK = 16


class Writer:
    """What gptqmodel's writer needs of a model."""

    def __init__(self, results: dict[str, Lora], folder: Path) -> None:
        self.lora_results = results
        self.quantize_config = SimpleNamespace(adapter=Lora(rank=RANK, path=str(folder)), dynamic=None)


def test_a_repair_that_gptqmodel_made_brings_the_model_nearer_to_its_original(tmp_path: Path) -> None:
    """It is read as an adapter of all matrices, and of what quantizing lost in the outputs less is left."""
    torch.manual_seed(0)
    dense = make_checkpoint(tmp_path / "tiny")
    checkpoint, lost, inputs, results = read_checkpoint(tmp_path / "tiny"), {}, {}, {}
    for name in dense:
        in_features, out_features = adaptable_matrices(checkpoint)[name]
        lost[name] = 0.01 * torch.randn(out_features, in_features)
        inputs[name] = torch.randn(256, in_features) * torch.rand(in_features)
        scaling = inputs[name].T @ inputs[name]
        a, b = eora_compute_lora(lost[name], name, scaling, RANK, torch.float16, torch.device("cpu"))
        results[name] = Lora(rank=RANK, lora_A=a.contiguous(), lora_B=b.contiguous())
    writer: Any = ModelWriter(Writer)
    writer(results, tmp_path / "repair").eora_save(str(tmp_path / "repair"), str(tmp_path / "tiny"))
    adapter = read_adapter(tmp_path / "repair")
    matched, tensors = match_adapter(adapter, checkpoint), load_file(adapter.weights)
    assert matched.keys() == dense.keys() and adapter.rank == RANK
    for name, matrix in matched.items():
        repair = matrix.scale * (tensors[matrix.b_name].float() @ tensors[matrix.a_name].float())
        before, after = (inputs[name] @ left.T for left in (lost[name], lost[name] - repair))
        assert after.norm() < 0.9 * before.norm(), name
