"""What would make a model fit that does not: less of what was asked for, more room, or a larger GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from core.memory.device_memory import DeviceMemory
from core.memory.fit_report import MIN_USEFUL_TOKENS, FitReport
from core.memory.load_plan import LoadPlan
from core.memory.load_ways import all_fit, device_sets, plan_devices
from core.memory.pages import PAGE_TOKENS, pages_of
from core.memory.sizes import MIB


def with_remedies(devices: Sequence[DeviceMemory], report: FitReport, split: Sequence[LoadPlan]) -> FitReport:
    """What would make it fit: a shorter context, fewer chats or tokens in all, what others hold given back, or a
    larger GPU. `split`: the captured loads over several GPUs, where only such share tokens."""
    remedies: list[tuple[str, dict[str, str | int | float]]] = []
    if report.max_context >= MIN_USEFUL_TOKENS:
        context = report.proposed_context
        if context == report.max_context:
            remedies.append(("shorter_context", {"context": context}))
        else:
            remedies.append(("shorter_quick", {"context": context, "max_context": report.max_context}))
    sets = [[devices[index] for index in indexes] for indexes in device_sets(devices)]
    if pool_tokens := max(largest_pool(load, one) for load in (report.load, *split) for one in sets):
        remedies.append(("shared_pool", {"pool": pool_tokens, "context": report.load.context_tokens}))
    if report.load.num_slots > 1 and _any_fits(report.load, sets, 1):
        remedies.append(("one_chat", {"context": report.load.context_tokens}))
    in_8_bit = replace(report.load, shape=replace(report.load.shape, cache_bits=8))
    if report.load.shape.cache_bits == 16 and _any_fits(in_8_bit, sets, report.load.num_slots):
        remedies.append(("cache_bits", {"context": report.load.context_tokens}))
    others_mib = sum(device.others_mib - device.returning_mib for device in report.devices)
    alone = [replace(device, others_mib=0, returning_mib=0) for device in report.devices]
    if others_mib > 0 and _any_fits(report.load, [alone], report.load.num_slots):
        remedies.append(("end_others", {"others": others_mib}))
    remedies.append(("larger_card", {"needed": math.ceil(_needed_mib_on_one(report))}))
    return replace(report, remedies=tuple(remedies))


def _needed_mib_on_one(report: FitReport) -> float:
    """Several GPUs have a CUDA context and buffers each."""
    load = report.load
    plans = plan_devices(
        load.shape, report.devices[:1], load.kernel, load.context_tokens, load.num_slots, load.cache, load.sizes
    )
    return plans[0].total / MIB


def _any_fits(load: LoadPlan, sets: Sequence[Sequence[DeviceMemory]], num_chats: int) -> bool:
    """Whether `num_chats` of the load's context would fit on one of `sets` with its kernel."""
    return any(
        all_fit(plan_devices(load.shape, devices, load.kernel, load.context_tokens, num_chats, load.cache), devices)
        for devices in sets
    )


def largest_pool(load: LoadPlan, devices: Sequence[DeviceMemory]) -> int:
    """The most tokens in all that there is room for on `devices` with the chats and the context of `load`, where those
    are fewer than what it promises; 0 where not one context fits, and where there are no pages."""
    num_pages = load.num_pages
    if num_pages is None:
        return 0
    low, high = pages_of(load.context_tokens) - 1, num_pages - 1
    while low < high:
        middle = (low + high + 1) // 2
        cache = replace(load.cache, pool_tokens=middle * PAGE_TOKENS)
        plans = plan_devices(load.shape, devices, load.kernel, load.context_tokens, load.num_slots, cache)
        if all_fit(plans, devices):
            low = middle
        else:
            high = middle - 1
    return low * PAGE_TOKENS if low >= pages_of(load.context_tokens) else 0
