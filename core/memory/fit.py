"""Does a model fit: the plan's sum against what is free, the largest context, and what would make it fit.

Pure arithmetic over core/memory/plan.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.notes import notes
from core.common.errors import DeckError, EngineError, InputError
from core.memory.adapter_room import NO_ROOM, AdapterRoom
from core.memory.cache_choice import EVERY_CHAT_FULL, CacheChoice
from core.memory.device_memory import DeviceMemory
from core.memory.fit_report import MIN_USEFUL_TOKENS, FitReport
from core.memory.kernels.registry import fastest_kernel
from core.memory.kernels.spec import Device, KernelSpec
from core.memory.load_plan import DevicePlan, LoadPlan, choose_dtype
from core.memory.load_ways import (
    LoadWay,
    all_fit,
    candidates,
    device_sets,
    kernel_device,
    load_ways,
    longest_context,
    weakest,
)
from core.memory.model_shape import ModelShape, read_shape
from core.memory.remedies import with_remedies

DEFAULT_CONTEXT_TOKENS = 4096
# The kernels of a step take no more rows (MAX_SMALL_BATCH in core/worker/kernels/packed_small_batch.py).
MAX_CHATS = 128


def check_fit(
    checkpoint: Checkpoint,
    devices: Sequence[DeviceMemory],
    context_tokens: int = 0,
    num_chats: int = 1,
    kernel: str | None = None,
    without: Sequence[str] = (),
    adapters: AdapterRoom = NO_ROOM,
    cache: CacheChoice = EVERY_CHAT_FULL,
) -> FitReport:
    """The verdict for `checkpoint` on `devices`: with captured steps where those fit on any of them, else with plain
    ones; on the first where it fits alone, else split by layers over several, with room for
    `adapters` on each of them. `cache`: what is promised to the chats.

    `context_tokens` 0 is the model's own limit without an extended rope, up to 4096, or a little less where that makes
    it quick (FitReport.proposed_context). Steps read as many tokens of prompts at once as there is room for; the kernel
    is the fastest that fits, a leaner one where only that fits, and none of `without`. Raises InputError for a context,
    a number of chats or tokens in all that cannot be and for a `kernel` that does not take the checkpoint,
    CheckpointError for a family that does not run here and for parts that contradict each other, EngineError where no
    kernel takes it on these cards.
    """
    asked = checked_context(checkpoint, context_tokens)
    if not 1 <= num_chats <= MAX_CHATS:
        raise InputError("chats_range", value=num_chats, limit=MAX_CHATS)
    cache.require_room(asked)
    checkpoint.require_runs()
    report = _verdict(checkpoint, devices, asked, num_chats, kernel, without, adapters, cache)
    if context_tokens == 0 and report.fits and report.proposed_context < asked:
        quick = report.proposed_context
        return _verdict(checkpoint, devices, quick, num_chats, kernel, without, adapters, cache)
    return report


@dataclass(frozen=True)
class _Place:
    """GPUs that a model can be loaded on together. `limit`: than which no context can be longer."""

    indexes: Sequence[int]
    devices: Sequence[DeviceMemory]
    ways: Sequence[LoadWay]
    num_chats: int
    cache: CacheChoice
    limit: int

    @cached_property
    def quick_context(self) -> int | None:
        """The longest with captured steps; None where no kernel captures them."""
        ways = [way for way in self.ways if way.is_captured and way.is_lean]
        return longest_context(ways, self.devices, self.num_chats, self.cache, self.limit) if ways else None

    def longest(self, load: LoadPlan) -> int:
        """The longest context: with captured steps, and with plain ones of the kernel of `load` if that is plain."""
        ways = [way for way in self.ways if not way.is_captured and way.is_lean]
        if not load.is_captured:
            ways = [way for way in ways if way.kernel == load.kernel]
        return longest_context(ways, self.devices, self.num_chats, self.cache, self.limit, self.quick_context or 0)


def _verdict(
    checkpoint: Checkpoint,
    devices: Sequence[DeviceMemory],
    context_tokens: int,
    num_chats: int,
    kernel: str | None,
    without: Sequence[str],
    adapters: AdapterRoom,
    cache: CacheChoice,
) -> FitReport:
    plain, merged = (read_shape(checkpoint, is_merged, adapters, cache.bits) for is_merged in (False, True))
    limit = min(checkpoint.max_context_tokens, cache.pool_tokens or checkpoint.max_context_tokens)
    places: list[_Place] = []
    for indexes in device_sets(devices):
        chosen = [devices[index] for index in indexes]
        kernels = candidates(plain, chosen, kernel, without)
        ways = load_ways(plain, merged, kernels, len(chosen), context_tokens * num_chats)
        places.append(_Place(indexes, chosen, ways, num_chats, cache, limit))
    refused: list[FitReport] = []
    split: list[LoadPlan] = []
    tries = [(place, way) for place in places for way in place.ways]
    for place, way in sorted(tries, key=lambda one: not one[1].is_captured):
        group = [kernel_device(device) for device in place.devices]
        memory = way.plan(place.devices, context_tokens, num_chats, cache)
        load = LoadPlan(
            kernel=way.kernel,
            kernel_reason=_kernel_reason(plain, group, way.kernel, kernel, without),
            dtype=choose_dtype(checkpoint, way.kernel, weakest(group)),
            device_kind="cuda",
            devices=tuple(map(DevicePlan, place.indexes, memory)),
            shape=way.shape,
            is_captured=way.is_captured,
            context_tokens=context_tokens,
            num_slots=num_chats,
            sizes=way.sizes,
            cache=cache,
        )
        fits = all_fit(memory, place.devices)
        if not fits and not way.is_lean:
            continue
        if not fits and load.is_captured:
            if len(group) == 1:
                continue
            split.append(load)
            # Only captured steps share tokens there: what these need was asked about.
            if load.pool_tokens is None:
                continue
        can_share = num_chats > 1 and (load.num_pages is not None or any(one.is_captured for one in place.ways))
        alike = [place] if fits and load.is_captured else places
        quick = max((one.quick_context for one in alike if one.quick_context is not None), default=None)
        report = _report(checkpoint, load, merged, place.devices, place.longest(load), quick, can_share)
        if fits:
            return report
        refused.append(report)
    if not refused:
        raise _no_kernel(checkpoint, plain, devices, kernel)
    return with_remedies(devices, max(refused, key=lambda report: (report.max_context, -report.lacking_mib)), split)


def require_fit(
    checkpoint: Checkpoint,
    devices: Sequence[DeviceMemory],
    context_tokens: int,
    num_chats: int,
    kernel: str | None,
    force: bool,
    without: Sequence[str] = (),
    adapters: AdapterRoom = NO_ROOM,
    cache: CacheChoice = EVERY_CHAT_FULL,
) -> FitReport:
    """The verdict at the moment of a load. Raises EngineError where it is no, unless the load is forced."""
    report = check_fit(checkpoint, devices, context_tokens, num_chats, kernel, without, adapters, cache)
    if not report.fits and not force:
        raise EngineError(f"load_{report.reason}", **report.params)
    return report


def checked_context(checkpoint: Checkpoint, context_tokens: int) -> int:
    """The context to reserve; 0 asks for the usual one. Raises InputError for one that the model was not made for."""
    limit = checkpoint.max_context_tokens
    if context_tokens == 0:
        return min(checkpoint.context_limits.usual_tokens, DEFAULT_CONTEXT_TOKENS)
    if not 0 < context_tokens <= limit:
        raise InputError("context_range", model=checkpoint.name, asked=context_tokens, limit=limit)
    return context_tokens


def _kernel_reason(
    shape: ModelShape, devices: Sequence[Device], kernel: KernelSpec, wanted: str | None, without: Sequence[str]
) -> str:
    """Why `kernel` runs the model: by name, as the fastest on the weakest of `devices`, or in place of that one."""
    if wanted is not None:
        return "asked_for"
    fastest, reason = fastest_kernel([matrix for matrix, _ in shape.matrices], weakest(devices))
    if fastest != kernel:
        return "faster_refused" if fastest.name in without else "leaner"
    return reason


def _no_kernel(
    checkpoint: Checkpoint, shape: ModelShape, devices: Sequence[DeviceMemory], wanted: str | None
) -> DeckError:
    """Why there is nothing to say of a model: the kernel that was asked for does not take it here, or none does."""
    able = {kernel.name: kernel for device in devices for kernel in candidates(shape, [device], None)}
    if wanted is not None and able:
        return InputError("kernel_refused", kernel=wanted, model=checkpoint.name, able=", ".join(able))
    return EngineError("no_kernel", model=checkpoint.name, quantization=checkpoint.quantization_label)


def _report(
    checkpoint: Checkpoint,
    load: LoadPlan,
    merged: ModelShape,
    devices: Sequence[DeviceMemory],
    max_context: int,
    quick_context: int | None,
    can_share: bool,
) -> FitReport:
    fits = all_fit(load.memory, devices)
    is_useful = max_context >= min(MIN_USEFUL_TOKENS, checkpoint.max_context_tokens)
    reason = "context_too_long" if is_useful else "too_large"
    if fits:
        reason = "fits" if load.pool_tokens is None else "fits_shared"
    report = FitReport(
        fits=fits,
        load=load,
        devices=tuple(devices),
        max_context=max_context,
        reason=reason,
        params={},
        can_share=can_share,
        quick_context=quick_context,
        merged=merged,
    )
    needed = math.ceil(report.needed_mib)
    margin = report.available_mib - needed if fits else needed - report.available_mib
    params: dict[str, str | int | float] = {
        "model": checkpoint.name,
        "card": " + ".join(device.name for device in devices),
        "needed": needed,
        "available": report.available_mib,
        # There may be enough on all GPUs together, and too little on one.
        "margin": margin if margin > 0 or fits else math.ceil(report.lacking_mib),
        "context": load.context_tokens,
        "max_context": max_context,
        "chats": load.num_slots,
    }
    if load.pool_tokens is not None:
        params["pool"] = load.pool_tokens
    found = notes(checkpoint, load.context_tokens)
    if load.shape.has_experts and not load.kernel.stacks_experts(load.shape):
        found = (*found, ("plain_experts", {}))
    elif quick_context is None and load.shape.is_capturable:
        found = (*found, ("plain_kernel", {"kernel": load.kernel.name}))
    return replace(report, params=params, notes=found)
