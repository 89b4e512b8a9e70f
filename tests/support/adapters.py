"""LoRA adapters as files, with random numbers: what can be tried without PEFT."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from core.checkpoint.adapters import WEIGHTS, read_adapter
from core.checkpoint.checkpoint import read_checkpoint
from core.checkpoint.weight_files import ADAPTER_CONFIG
from core.memory.adapter_room import adaptable_matrices, adaptable_stacks


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


def write_expert_adapter(folder: Path, model: Path, rank: int = 4) -> Path:
    """An adapter of every matrix of every expert of the checkpoint in `model`, one by one, of random numbers."""
    folder.mkdir(parents=True)
    random, tensors = np.random.default_rng(0), {}
    for stack, sizes in adaptable_stacks(read_checkpoint(model)).items():
        for number, (projection, (inputs, outputs)) in product(range(sizes.num_experts), sizes.matrices.items()):
            name = f"base_model.model.{stack}.{number}.{projection}"
            tensors[f"{name}.lora_A.weight"] = random.normal(0, 1, (rank, inputs)).astype(np.float16)
            tensors[f"{name}.lora_B.weight"] = random.normal(0, 1, (outputs, rank)).astype(np.float16)
    save_file(tensors, folder / WEIGHTS)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "base_model_name_or_path": model.name}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config), "utf-8")
    return folder


def write_swapped(stacked: Path, folder: Path, version: str | None) -> Path:
    """The adapter in `stacked` as PEFT before 0.19.1 wrote it of classes whose parameters are [experts, out, in]: A
    and B of each expert, transposed, have each other's place. version: the one that it says."""
    folder.mkdir(parents=True)
    tensors, adapter = load_file(stacked / WEIGHTS), read_adapter(stacked)
    for stack in adapter.stacks.values():
        a, b = tensors[stack.a_name], tensors[stack.b_name]
        count, rank = stack.num_experts, stack.rank
        tensors[stack.a_name] = np.ascontiguousarray(np.concatenate([b[:, number::count].T for number in range(count)]))
        swapped = np.empty((a.shape[1], rank * count), a.dtype)
        for number in range(count):
            swapped[:, number::count] = a[number * rank : (number + 1) * rank].T
        tensors[stack.b_name] = swapped
    save_file(tensors, folder / WEIGHTS)
    config = json.loads((stacked / ADAPTER_CONFIG).read_text("utf-8"))
    config.pop("peft_version", None)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config | ({"peft_version": version} if version else {})), "utf-8")
    return folder


def write_one_by_one(stacked: Path, folder: Path) -> Path:
    """The adapter in `stacked`, which has all experts of a layer in one, as PEFT wrote it while classes had modules for
    the matrices of each."""
    folder.mkdir(parents=True)
    tensors, adapter = load_file(stacked / WEIGHTS), read_adapter(stacked)
    for stack in adapter.stacks.values():
        a, b = tensors.pop(stack.a_name), tensors.pop(stack.b_name)
        total = stack.out_features
        halves = {"gate_proj": (0, total // 2, 1), "up_proj": (total // 2, total, 1)}
        cuts = {"down_proj": (0, total, 1)} if stack.projection == "down_proj" else halves
        for number in range(stack.num_experts):
            for projection, outputs in cuts.items():
                name = f"{stack.stack}.{number}.{projection}"
                own = stack.of_expert(name, number, outputs, is_swapped=False).own_parts(a, b)
                for part, value in zip("AB", own, strict=True):
                    tensors[f"base_model.model.{name}.lora_{part}.weight"] = np.ascontiguousarray(value)
    save_file(tensors, folder / WEIGHTS)
    config = json.loads((stacked / ADAPTER_CONFIG).read_text("utf-8")) | {"target_parameters": None}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config), "utf-8")
    return folder
