"""How a model is to be quantized, checked before anything begins, and what the result is called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.checkpoint.adapters import AdapterShape, match_base, read_adapter, require_numbers, with_class_names
from core.checkpoint.low_rank import LowRank
from core.checkpoint.matched_copies import require_same_copies
from core.checkpoint.tied_head import tied_head
from core.common.errors import CheckpointError, InputError
from core.common.paths import models_dir
from core.common.values import quoted_text
from core.quantize.source import PlainModel

BITS = (4, 8)
# -1: one scale a column.
GROUP_SIZES = (32, 64, 128, -1)
DEFAULT_GROUP_SIZE = 128
MAX_ADAPTERS = 16
UNSAFE = re.compile(r"[^\w.+=-]+")
MAX_NAME_BYTES = 200


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """`adapters`: folders of adapters, which are merged first, in order. `calibration`: a person's own text file.

    `sees_all`: each expert of a mixture is calibrated on all rows, not only on those that its router sends it.
    """

    bits: int = 4
    group_size: int = DEFAULT_GROUP_SIZE
    is_act_order: bool = False
    is_symmetric: bool = True
    adapters: tuple[Path, ...] = ()
    calibration: Path | None = None
    sees_all: bool = False

    def __post_init__(self) -> None:
        """Raises InputError for bits and group sizes that no kernel here takes."""
        if self.bits not in BITS:
            raise InputError("quantize_bits", value=self.bits, known=", ".join(map(str, BITS)))
        if self.group_size not in GROUP_SIZES:
            raise InputError("quantize_group_size", value=self.group_size, known=", ".join(map(str, GROUP_SIZES)))
        if len(self.adapters) > MAX_ADAPTERS:
            raise InputError("quantize_adapters", count=len(self.adapters), limit=MAX_ADAPTERS)

    @property
    def label(self) -> str:
        group = "no groups" if self.group_size < 0 else f"group {self.group_size}"
        extras = (", act-order" if self.is_act_order else "") + ("" if self.is_symmetric else ", asymmetric")
        return f"{self.bits} bit, {group}{extras}"

    def as_json(self) -> dict[str, Any]:
        return {
            "bits": self.bits,
            "group_size": self.group_size,
            "is_act_order": self.is_act_order,
            "is_symmetric": self.is_symmetric,
            "adapters": [str(path) for path in self.adapters],
            "calibration": None if self.calibration is None else str(self.calibration),
            "sees_all": self.sees_all,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> QuantizeOptions:
        """Raises KeyError, TypeError or InputError for what as_json did not write."""
        calibration = value["calibration"]
        return cls(
            bits=value["bits"],
            group_size=value["group_size"],
            is_act_order=value["is_act_order"],
            is_symmetric=value["is_symmetric"],
            adapters=tuple(map(Path, value["adapters"])),
            calibration=None if calibration is None else Path(calibration),
            sees_all=value["sees_all"],
        )


@dataclass(frozen=True, slots=True)
class MergeStep:
    """One adapter, and what it adds to each of the base's matrices, by the base's names."""

    adapter: AdapterShape
    matrices: Mapping[str, LowRank] = field(repr=False)


def merge_steps(model: PlainModel, options: QuantizeOptions) -> tuple[MergeStep, ...]:
    """What is merged into `model`, in order. Raises CheckpointError for an adapter that is not of this base."""
    steps = []
    tied = tied_head(model.tensors)
    # Copies of one that is at a hub or in Meta's format are compared when its files are there.
    there = model.folder if model.files else None
    for folder in options.adapters:
        adapter = read_adapter(folder)
        if adapter.changes_experts and model.has_stacked_experts:
            raise CheckpointError("adapter_stacked_base", adapter=adapter.name, base=model.name)
        named = with_class_names(adapter, model.config)
        matrices = match_base(named, model.name, {**model.linears, **tied})
        if (head := next((one for name, one in matrices.items() if name in tied), None)) is not None:
            raise CheckpointError("adapter_tied_head", adapter=adapter.name, base=model.name, module=head.name)
        require_same_copies(adapter, model.name, matrices, model.tensors, folder=there)
        require_numbers(adapter)
        steps.append(MergeStep(adapter, matrices))
    return tuple(steps)


def check_group_size(model: PlainModel, options: QuantizeOptions) -> None:
    """Raise CheckpointError where the groups do not divide a matrix: no kernel here takes a shorter last group."""
    if options.group_size < 0:
        return
    for name, (in_features, _) in model.matrices.items():
        if in_features % options.group_size:
            fitting = [size for size in GROUP_SIZES if all(i % size == 0 for i, _ in model.matrices.values())]
            raise CheckpointError("quantize_group_fits", model=model.name, size=options.group_size, name=name,
                                  inputs=in_features, fitting=", ".join(map(str, fitting)))  # fmt: skip


def result_name(model: str, options: QuantizeOptions) -> str:
    """The folder of the result under models/: MODEL[-ADAPTER…]-GPTQ-4bit-128g."""
    adapters = "".join(f"-{path.name}" for path in options.adapters)
    group = "" if options.group_size < 0 else f"-{options.group_size}g"
    extras = ("-actorder" if options.is_act_order else "") + ("" if options.is_symmetric else "-asym")
    ending = f"-GPTQ-{options.bits}bit{group}{extras}"
    stem = UNSAFE.sub("_", f"{model}{adapters}").strip("._") or "model"
    while len(stem.encode()) + len(ending) > MAX_NAME_BYTES:
        stem = stem[:-1]
    return stem + ending


def check_name(name: str) -> str:
    """`name` as the result's folder under models/. Raises InputError where no folder can have it, or one has it."""
    if UNSAFE.search(name) or name.startswith(".") or not name or len(name.encode()) > MAX_NAME_BYTES:
        raise InputError("quantize_name", name=quoted_text(name))
    if (models_dir() / name).exists():
        raise InputError("quantize_there", name=name)
    return name
