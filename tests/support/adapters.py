"""LoRA adapters as files, with random numbers: what can be tried without PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from core.checkpoint.checkpoint import read_checkpoint
from core.memory.adapter_room import adaptable_matrices


def write_adapter(
    folder: Path, model: Path, rank: int = 4, base: str = "", ending: str = "q_proj", spread: float = 1.0, seed: int = 0
) -> Path:
    """An adapter of the matrices of the checkpoint in `model` whose names have this `ending`, of numbers as large as
    `spread`."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    tensors = {}
    for name, (inputs, outputs) in adaptable_matrices(read_checkpoint(model)).items():
        if name.endswith(ending):
            tensors[f"base_model.model.{name}.lora_A.weight"] = random.normal(0, spread, (rank, inputs))
            tensors[f"base_model.model.{name}.lora_B.weight"] = random.normal(0, spread, (outputs, rank))
    save_file({name: value.astype(np.float16) for name, value in tensors.items()}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    return folder
