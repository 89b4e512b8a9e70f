"""What the verdict says of a model: fits or not, every number that this rests on, and what would make it fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from core.checkpoint.notes import Note
from core.memory.device_memory import DeviceMemory
from core.memory.kernels.spec import KernelSpec
from core.memory.load_plan import LoadPlan
from core.memory.model_shape import ModelShape
from core.memory.plan import MemoryPlan, sum_plans
from core.memory.sizes import MIB

# A shorter context holds no question and its answer.
MIN_USEFUL_TOKENS = 512
# What of a sentence's values is memory, in MiB.
SIZES = ("needed", "available", "margin", "others")


def in_mib(params: Mapping[str, str | int | float]) -> dict[str, str | int | float]:
    """The values of a sentence of the section "fit" as terminals and programs read them: memory to the MiB."""
    return {name: f"{value} MiB" if name in SIZES else value for name, value in params.items()}


@dataclass(frozen=True, slots=True)
class FitReport:
    """The verdict with every number that it rests on.

    `load` is what would be loaded, fitting or not, on `devices`; `plans` has one plan for each of them, `plan` adds
    them up. `reason` is the name of a sentence in the section "fit" of the locale files, `params` what it quotes.
    `max_context` is the longest that fits, 0 where not even the weights do. `quick_context` is the longest with
    captured steps, 0 where these have no room; None where no kernel captures the model's steps. `remedies`: what would
    make it fit. `notes`: what else to know of the model (core/checkpoint/notes.py). `can_share`: whether the chats can
    share tokens on `devices`, if not in this load, then in captured steps where there is room for them. `merged`: the
    model as captured steps have it.
    """

    fits: bool
    load: LoadPlan
    devices: tuple[DeviceMemory, ...]
    max_context: int
    reason: str
    params: dict[str, str | int | float]
    remedies: tuple[tuple[str, dict[str, str | int | float]], ...] = ()
    notes: tuple[Note, ...] = ()
    can_share: bool = False
    quick_context: int | None = None
    merged: ModelShape | None = None

    @property
    def is_slow(self) -> bool:
        """Whether steps are plain, which are several times slower than captured ones."""
        return not self.load.is_captured

    @property
    def proposed_context(self) -> int:
        """The longest context to propose: the longest quick one, unless it is of no use or more than twice as much
        fits."""
        quick = self.quick_context or 0
        is_sensible = quick >= MIN_USEFUL_TOKENS and 2 * quick >= self.max_context
        return quick if is_sensible else self.max_context

    @property
    def speed_note(self) -> Note | None:
        """What to know of the speed before a load that fits: a sentence of the section "fit" and what it quotes.

        None where it is quick with every context that fits, and where it is never: then `notes` say why.
        """
        if not self.fits or self.quick_context is None or self.quick_context == self.max_context:
            return None
        if not self.is_slow:
            return "quick_until", {"quick": self.quick_context}
        return ("slow_context", {"quick": self.quick_context}) if self.quick_context else ("slow", {})

    @property
    def kernel(self) -> KernelSpec:
        return self.load.kernel

    @property
    def plans(self) -> tuple[MemoryPlan, ...]:
        return self.load.memory

    @property
    def plan(self) -> MemoryPlan:
        return sum_plans(self.plans)

    @property
    def available_mib(self) -> int:
        return sum(device.available_mib for device in self.devices)

    @property
    def needed_mib(self) -> float:
        return sum(plan.total for plan in self.plans) / MIB

    @property
    def margin_mib(self) -> float:
        return self.available_mib - self.needed_mib

    @property
    def lacking_mib(self) -> float:
        """What is too few, GPU by GPU: what one has left does not help another that is full."""
        pairs = zip(self.plans, self.devices, strict=True)
        return sum(max(0.0, plan.total / MIB - device.available_mib) for plan, device in pairs)
