"""Merges LoRA adapters into a checkpoint: W + scale * B @ A in float32, rounded once to the type that W had."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from core.checkpoint.adapters import WEIGHTS, AdapterShape
from core.checkpoint.low_rank import LowRank
from core.checkpoint.merged import MergedAdapter, describe, write_merged
from core.checkpoint.weight_files import SUFFIX
from core.common.errors import CheckpointError
from core.common.panics import why_of
from core.quantize.child.file_errors import reading, writing
from core.quantize.options import MergeStep, QuantizeOptions, merge_steps
from core.quantize.source import PlainModel, read_plain


@dataclass(slots=True)
class Change:
    """What adapters add to one tensor of the files. is_turned: it lies as [in, out]."""

    is_turned: bool
    added: list[tuple[AdapterShape, LowRank]] = field(default_factory=list)


def merge(source: Path, options: QuantizeOptions, folder: Path, report: Callable[..., None]) -> Path:
    """Write the checkpoint in `source` with all adapters merged into `folder`, which is whole or not there. Raises
    DeckError, also for files that cannot be read or written."""
    if folder.is_dir():
        return folder
    model = read_plain(source)
    steps = merge_steps(model, options)
    changes = _changes(model, steps)
    merged_ones = [_described(step.adapter) for step in steps]
    partial = folder.with_name(folder.name + ".partial")
    with writing(partial):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for path in source.iterdir():
            if path.is_file() and not path.name.startswith(".") and path.suffix not in (SUFFIX, ".pth", ".bin", ".pt"):
                shutil.copyfile(path, partial / path.name)
    for number, file in enumerate(model.files):
        with reading(source / file):
            tensors = _merged_tensors(source / file, changes)
        with writing(partial / file):
            save_file(tensors, partial / file, metadata={"format": "pt"})
            (partial / file).chmod(0o644)
        report((number + 1) / len(model.files))
    with writing(partial):
        # It goes on into the finished checkpoint, as all small files do.
        write_merged(partial, merged_ones)
        os.rename(partial, folder)
    return folder


def _merged_tensors(file: Path, changes: Mapping[str, Change]) -> dict[str, torch.Tensor]:
    """All tensors of one of the source's files. Raises OSError, SafetensorError where that cannot be read."""
    tensors = {}
    with safe_open(file, "pt") as opened:
        for name in opened.keys():
            value = opened.get_tensor(name)
            change = changes.get(name)
            tensors[name] = value if change is None else merged(name, value, change)
    return tensors


def _described(adapter: AdapterShape) -> MergedAdapter:
    with _explained(adapter):
        return describe(adapter.name, adapter.weights)


def _changes(model: PlainModel, steps: Iterable[MergeStep]) -> dict[str, Change]:
    """By the names that the files have for the tensors."""
    found: dict[str, Change] = {}
    for step in steps:
        for module, matrix in step.matrices.items():
            name = f"{module}.weight"
            stored = model.tensors[name].stored_name or name
            found.setdefault(stored, Change(model.is_turned(name))).added.append((step.adapter, matrix))
    return found


def merged(name: str, value: torch.Tensor, change: Change) -> torch.Tensor:
    """`value` and all that adapters add to it. Raises CheckpointError where that is no number."""
    total = value.float()
    for adapter, matrix in change.added:
        with _explained(adapter):
            a, b = matrix.own_parts(*_read_parts(adapter.weights, matrix.a_name, matrix.b_name))
        delta = matrix.scale * (b @ a)
        if not is_finite(delta):
            _raise_not_finite(adapter, matrix, a, b)
        total = total + (delta.T if change.is_turned else delta)
    result = total.to(value.dtype)
    if not is_finite(result):
        raise CheckpointError("merge_range", name=name, dtype=str(value.dtype).removeprefix("torch."))
    return result.contiguous()


def _raise_not_finite(adapter: AdapterShape, matrix: LowRank, a: torch.Tensor, b: torch.Tensor) -> NoReturn:
    """Raises CheckpointError: for numbers that are none, or for a product of numbers that is too large."""
    if not (is_finite(a) and is_finite(b)):
        raise CheckpointError("adapter_nan", adapter=adapter.name, module=matrix.name)
    raise CheckpointError("adapter_range", adapter=adapter.name, module=matrix.name, dtype="float32",
                          scale=f"{matrix.scale:.4g}")  # fmt: skip


@lru_cache(2)
def _read_parts(weights: Path, a_name: str, b_name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B in float32. Those of all experts of a layer are asked for by each of them."""
    with safe_open(weights, "pt") as opened:
        return opened.get_tensor(a_name).float(), opened.get_tensor(b_name).float()


@contextmanager
def _explained(adapter: AdapterShape) -> Iterator[None]:
    """Raises CheckpointError for an adapter's file that cannot be read, or is another by now than its header said."""
    try:
        yield
    except OSError as error:
        raise CheckpointError("adapter_unreadable", file=adapter.name, why=why_of(error)) from error
    except SafetensorError as error:
        raise CheckpointError("adapter_corrupt_weights", folder=adapter.name, file=WEIGHTS) from error


def is_finite(value: Any) -> bool:
    """Whether every number of a tensor is one."""
    return bool(torch.isfinite(value).all())
