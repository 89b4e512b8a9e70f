"""Which cards a model fits on: one alone, or two of one kind; for whoever rents or buys one."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from core.gpu.known_gpus import KnownGpu, known_gpus
from core.memory.device_memory import DeviceMemory
from core.memory.fit_report import FitReport
from core.memory.load_plan import LoadPlan
from core.memory.load_ways import all_fit, candidates, plan_devices
from core.memory.model_shape import ModelShape
from core.memory.sizes import MIB

# Older cards have no tensor cores, and most builds of torch no code for them.
MIN_CAPABILITY = (7, 5)
# What is offered for rent most often; of each size of memory these are named first.
USUAL = (
    "RTX 3060 12GB", "RTX 5060", "RTX 4060", "T4", "RTX 5060 Ti 16GB", "RTX 4060 Ti 16GB", "RTX 3090", "RTX 4090",
    "A10", "L4", "RTX 5090", "A100 40GB", "A40", "RTX A6000", "L40S", "A100 80GB PCIe", "H100 SXM", "H20", "H200",
)  # fmt: skip
# How many sizes of memory are named, and how many cards of each.
NUM_SIZES, NUM_OF_SIZE = 4, 2


@dataclass(frozen=True, slots=True)
class CardOffer:
    """Cards of one kind that hold a model: how many of them, and the memory that each has on its box."""

    name: str
    count: int
    memory_gb: int

    @property
    def label(self) -> str:
        many = f"{self.count} × " if self.count > 1 else ""
        return f"{many}{self.name}" if f"{self.memory_gb}" in self.name else f"{many}{self.name} ({self.memory_gb} GB)"


def cards_that_fit(report: FitReport, count: int = 1) -> tuple[CardOffer, ...]:
    """The known cards of which `count` together hold the load of a verdict that says no, the smallest memory first:
    with captured steps, which are quick, where a kernel captures them there.

    A card that holds it alone is not offered twice.
    """
    return _cards(report.load, report.merged or report.load.shape, count)


@lru_cache(maxsize=64)
def _cards(load: LoadPlan, merged: ModelShape, count: int) -> tuple[CardOffer, ...]:
    offers: list[CardOffer] = []
    wanted = load.kernel.name if load.kernel_reason == "asked_for" else None
    for gpu in _rentable():
        sizes = [offer.memory_gb for offer in offers]
        if sizes.count(gpu.memory_gb) >= NUM_OF_SIZE or (gpu.memory_gb not in sizes and len(set(sizes)) == NUM_SIZES):
            continue
        device = DeviceMemory.planned(gpu)
        is_enough = count > 1 and _holds(load, merged, [device], wanted)
        if not is_enough and _holds(load, merged, [device] * count, wanted):
            offers.append(CardOffer(gpu.name, count, gpu.memory_gb))
    return tuple(offers)


@cache
def _rentable() -> tuple[KnownGpu, ...]:
    """The smallest memory first, and of each size the usual ones."""
    gpus = [
        gpu
        for gpu in known_gpus()
        if not gpu.is_rare and gpu.compute_capability >= MIN_CAPABILITY
        if not re.search(r"Laptop|ECC", gpu.name)
    ]
    places = {name: place for place, name in enumerate(USUAL)}
    return tuple(sorted(gpus, key=lambda gpu: (gpu.memory_gb, places.get(gpu.name, len(USUAL)), gpu.total_mib)))


def _holds(load: LoadPlan, merged: ModelShape, devices: Sequence[DeviceMemory], wanted: str | None) -> bool:
    """Whether there is room on `devices` for the model with any kernel that captures its steps, else with any."""
    if sum(device.available_mib for device in devices) < least_mib(load):
        return False
    kernels = candidates(load.shape, devices, wanted)
    quick = [kernel for kernel in kernels if kernel.can_capture(merged)]
    shape = merged if quick else load.shape
    return any(
        all_fit(plan_devices(shape, devices, kernel, load.context_tokens, load.num_slots, load.cache), devices)
        for kernel in quick or kernels
    )


def least_mib(load: LoadPlan) -> int:
    """What no kernel can do without: the codes of all matrices."""
    return math.floor(sum(matrix.codes_bytes * count for matrix, count in load.shape.matrices) / MIB)
