"""The memory that a load planned beside what it took, part by part, and whether the plan was true."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from core.engine.protocol import MemoryFacts
from core.memory.sizes import MIB

# A plan may promise this much more than a load takes before it is said to be too large.
SPARE_SHARE, SPARE_BYTES = 0.01, 64 * MIB
PartName = Literal["weights", "cache", "scratch", "context"]
Judgement = Literal["true", "too_small", "too_large"]


@dataclass(frozen=True, slots=True)
class PartTruth:
    """One part in bytes. `measured` is None where the driver does not tell it."""

    name: PartName
    planned: int
    measured: int | None


@dataclass(frozen=True, slots=True)
class MemoryTruth:
    """All parts, in MiB what the plan was wrong by in the sense of `judgement`, and their sums in bytes.

    Of a part that the driver does not tell, the planned bytes count as taken.
    """

    parts: tuple[PartTruth, ...]
    planned: int
    measured: int
    judgement: Judgement
    off_mib: int

    @property
    def log_line(self) -> str:
        """One line in English, in MiB."""
        said = {"true": "as planned", "too_small": f"{self.off_mib} MiB more than planned",
                "too_large": f"{self.off_mib} MiB less than planned"}[self.judgement]  # fmt: skip
        parts = [f"{part.name} {_mib(part.planned)} / {_mib(part.measured)}" for part in self.parts]
        whole = f"{_mib(self.planned)} / {_mib(self.measured)} MiB"
        return f"GPU memory planned / taken: {whole}, {said} ({', '.join(parts)})"


def memory_truth(memory: MemoryFacts, cache_bytes: int) -> MemoryTruth:
    """The plan of a load against what it took, with a KV cache of `cache_bytes`."""
    plan = memory.plan
    # The driver counts CUDA's graphs with its context; torch's allocator has all else.
    context = plan.context + plan.graphs
    kept = plan.weights + plan.scratch
    parts = (
        PartTruth("weights", kept, memory.loaded_bytes),
        PartTruth("cache", plan.kv_cache, cache_bytes),
        PartTruth("scratch", plan.allocated - kept - plan.kv_cache,
                  max(0, memory.peak_bytes - memory.loaded_bytes - cache_bytes)),
        PartTruth("context", context, memory.context_bytes),
    )  # fmt: skip
    taken_beside = context if memory.context_bytes is None else memory.context_bytes
    measured = memory.peak_bytes + taken_beside
    # What the allocator has to spare is kept for the model, so that it makes no room for a larger context.
    over = max(0, memory.peak_bytes - plan.allocated) + max(0, taken_beside - context)
    spare = plan.total - measured
    judgement: Judgement = "true"
    if over >= MIB:
        judgement = "too_small"
    elif spare > SPARE_SHARE * measured + SPARE_BYTES:
        judgement = "too_large"
    off = {"true": 0, "too_small": over, "too_large": spare}[judgement]
    return MemoryTruth(parts, plan.total, measured, judgement, math.ceil(off / MIB))


def _mib(num_bytes: int | None) -> str:
    return "?" if num_bytes is None else f"{num_bytes / MIB:.0f}"
