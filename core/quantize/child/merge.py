"""Merges LoRA adapters into a checkpoint: W + scale * B @ A in float32, rounded once to the type that W had."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from core.checkpoint.adapters import AdapterShape
from core.checkpoint.low_rank import LowRank
from core.checkpoint.weight_files import SUFFIX
from core.common.errors import CheckpointError
from core.quantize.options import QuantizeOptions, merge_steps
from core.quantize.source import read_plain

Added = list[tuple[AdapterShape, LowRank]]


def merge(source: Path, options: QuantizeOptions, folder: Path, report: Callable[..., None]) -> Path:
    """Write the checkpoint in `source` with all adapters merged into `folder`, which is whole or not there."""
    if folder.is_dir():
        return folder
    model = read_plain(source)
    by_stored: defaultdict[str, Added] = defaultdict(list)
    for step in merge_steps(model, options):
        for name, matrix in step.matrices.items():
            tensor = model.tensors[f"{name}.weight"]
            by_stored[tensor.stored_name or f"{name}.weight"].append((step.adapter, matrix))
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file() and not path.name.startswith(".") and path.suffix not in (SUFFIX, ".pth", ".bin", ".pt"):
            shutil.copyfile(path, partial / path.name)
    for number, file in enumerate(model.files):
        tensors = {}
        with safe_open(source / file, "pt") as opened:
            for name in opened.keys():
                value = opened.get_tensor(name)
                tensors[name] = merged(name, value, by_stored[name]) if name in by_stored else value
        save_file(tensors, partial / file, metadata={"format": "pt"})
        (partial / file).chmod(0o644)
        report((number + 1) / len(model.files))
    os.rename(partial, folder)
    return folder


def merged(name: str, value: torch.Tensor, added: Added) -> torch.Tensor:
    """`value` [out, in] and all that adapters add to it. Raises CheckpointError where that is no number."""
    total = value.float()
    for adapter, matrix in added:
        a, b = matrix.own_parts(*_read_parts(adapter.weights, matrix.a_name, matrix.b_name))
        delta = matrix.scale * (b @ a)
        if not is_finite(delta):
            raise CheckpointError("adapter_nan", adapter=adapter.name, module=matrix.name)
        total = total + (delta.T if adapter.is_transposed else delta)
    result = total.to(value.dtype)
    if not is_finite(result):
        raise CheckpointError("merge_range", name=name, dtype=str(value.dtype).removeprefix("torch."))
    return result.contiguous()


@lru_cache(2)
def _read_parts(weights: Path, a_name: str, b_name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B in float32. Those of all experts of a layer are asked for by each of them."""
    with safe_open(weights, "pt") as opened:
        return opened.get_tensor(a_name).float(), opened.get_tensor(b_name).float()


def is_finite(value: Any) -> bool:
    """Whether every number of a tensor is one."""
    return bool(torch.isfinite(value).all())
