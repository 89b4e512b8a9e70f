"""Does a model fit: the plan's sum against what is free, the largest context, and what would make it fit.

Pure arithmetic over core/memory/plan.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.notes import Note, notes
from core.common.errors import DeckError, EngineError, InputError
from core.memory.adapter_room import NO_ROOM, AdapterRoom
from core.memory.device_memory import DeviceMemory
from core.memory.kernels.registry import able_kernels, fastest_kernel
from core.memory.kernels.spec import Device, KernelSpec
from core.memory.load_plan import DevicePlan, LoadPlan, choose_dtype
from core.memory.model_shape import ModelShape, read_shape
from core.memory.plan import GPU_CHUNK_TOKENS, MemoryPlan, make_plan, split_plan, sum_plans
from core.memory.sizes import MIB

DEFAULT_CONTEXT_TOKENS = 4096
MAX_CHATS = 64
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
    `max_context` is the longest that fits, 0 where not even the weights do. `remedies`: what would make it fit.
    `notes`: what else to know of the model (core/checkpoint/notes.py).
    """

    fits: bool
    load: LoadPlan
    devices: tuple[DeviceMemory, ...]
    max_context: int
    reason: str
    params: dict[str, str | int | float]
    remedies: tuple[tuple[str, dict[str, str | int | float]], ...] = ()
    notes: tuple[Note, ...] = ()

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


def check_fit(
    checkpoint: Checkpoint,
    devices: Sequence[DeviceMemory],
    context_tokens: int = 0,
    num_chats: int = 1,
    kernel: str | None = None,
    without: Sequence[str] = (),
    adapters: AdapterRoom = NO_ROOM,
) -> FitReport:
    """The verdict for `checkpoint` on `devices`: on the first where it fits alone, else split by layers over several.
    With room for `adapters` it is not split.

    `context_tokens` 0 is the model's own limit without an extended rope, up to 4096. Steps are captured where that
    fits, else not; the kernel is then the fastest that fits, a leaner one where only that fits, and none of `without`.
    Raises InputError for a context or a number of chats that cannot be and for a `kernel` that does not take the
    checkpoint, CheckpointError for a family that does not run here and for parts that contradict each other,
    EngineError where no kernel takes it on these cards.
    """
    context_tokens = checked_context(checkpoint, context_tokens)
    if not 1 <= num_chats <= MAX_CHATS:
        raise InputError("chats_range", value=num_chats, limit=MAX_CHATS)
    checkpoint.require_runs()
    plain, merged = (read_shape(checkpoint, is_merged, adapters) for is_merged in (False, True))
    refused: list[FitReport] = []
    for indexes in usable_sets(plain, devices):
        group = [devices[index] for index in indexes]
        kernels = candidates(plain, group, kernel, without)
        captured = [(merged, one) for one in kernels if len(group) == 1 and one.can_capture(merged)]
        for shape, one in [*captured, *((plain, one) for one in kernels)]:
            places = [kernel_device(device) for device in group]
            load = LoadPlan(
                kernel=one,
                kernel_reason=_kernel_reason(plain, places, one, kernel, without),
                dtype=choose_dtype(checkpoint, one, weakest(places)),
                device_kind="cuda",
                devices=tuple(map(DevicePlan, indexes, plan_devices(shape, group, one, context_tokens, num_chats))),
                shape=shape,
                is_captured=shape.is_merged,
                context_tokens=context_tokens,
                num_slots=num_chats,
                chunk_tokens=GPU_CHUNK_TOKENS,
            )
            report = _report(checkpoint, load, group)
            if report.fits and load.is_captured:
                return replace(report, max_context=_longest(checkpoint, plain, group, kernels, num_chats))
            if report.fits:
                return report
            if not load.is_captured:
                refused.append(report)
    if not refused:
        raise _no_kernel(checkpoint, plain, devices, kernel)
    return _with_remedies(devices, max(refused, key=lambda report: (report.max_context, -report.lacking_mib)))


def require_fit(
    checkpoint: Checkpoint,
    devices: Sequence[DeviceMemory],
    context_tokens: int,
    num_chats: int,
    kernel: str | None,
    force: bool,
    without: Sequence[str] = (),
    adapters: AdapterRoom = NO_ROOM,
) -> FitReport:
    """The verdict at the moment of a load. Raises EngineError where it is no, unless the load is forced."""
    report = check_fit(checkpoint, devices, context_tokens, num_chats, kernel, without, adapters)
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


def device_sets(devices: Sequence[DeviceMemory]) -> list[list[int]]:
    """The index of each device by itself, then of the two with the most room, the three, ...: one that is full should
    not take a part."""
    by_room = sorted(range(len(devices)), key=lambda index: -devices[index].available_mib)
    return [*([index] for index in range(len(devices))), *(sorted(by_room[:n]) for n in range(2, len(devices) + 1))]


def usable_sets(shape: ModelShape, devices: Sequence[DeviceMemory]) -> list[list[int]]:
    """Of `device_sets` those that the model can run on: with adapters only single ones."""
    return [indexes for indexes in device_sets(devices) if len(indexes) == 1 or not shape.adapters.count]


def kernel_device(device: DeviceMemory) -> Device:
    return Device("cuda", device.capability, has_c_compiler=device.has_c_compiler)


def weakest(devices: Sequence[Device]) -> Device:
    return min(devices, key=lambda device: device.capability)


def candidates(
    shape: ModelShape, devices: Sequence[DeviceMemory], wanted: str | None, without: Sequence[str] = ()
) -> list[KernelSpec]:
    """The kernels that take the model on every one of `devices`, fastest first: only `wanted` if one is, and none of
    `without`."""
    able = able_kernels([matrix for matrix, _ in shape.matrices], [kernel_device(device) for device in devices])
    able = [kernel for kernel in able if kernel.name not in without]
    if wanted is not None:
        return [kernel for kernel in able if kernel.name == wanted]
    return [kernel for kernel in able if not kernel.is_last_resort] or able


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


def plan_devices(
    shape: ModelShape, devices: Sequence[DeviceMemory], kernel: KernelSpec, context_tokens: int, num_chats: int
) -> tuple[MemoryPlan, ...]:
    """One plan a device; on one device a merged shape is planned captured."""
    if len(devices) == 1:
        capability = devices[0].capability
        return (make_plan(shape, kernel, capability, context_tokens, num_chats, GPU_CHUNK_TOKENS, shape.is_merged),)
    return split_plan(
        shape,
        kernel,
        [device.capability for device in devices],
        [device.available_mib * MIB for device in devices],
        context_tokens,
        num_chats,
        GPU_CHUNK_TOKENS,
    )


def all_fit(plans: Sequence[MemoryPlan], devices: Sequence[DeviceMemory]) -> bool:
    return all(plan.total <= device.available_mib * MIB for plan, device in zip(plans, devices, strict=True))


def _report(checkpoint: Checkpoint, load: LoadPlan, devices: Sequence[DeviceMemory]) -> FitReport:
    fits = all_fit(load.memory, devices)
    # What is captured has its longest context worked out once it is known to fit.
    max_context = 0 if load.is_captured else _longest(checkpoint, load.shape, devices, [load.kernel], load.num_slots)
    is_useful = max_context >= min(MIN_USEFUL_TOKENS, checkpoint.max_context_tokens)
    reason = "fits" if fits else "context_too_long" if is_useful else "too_large"
    report = FitReport(fits, load, tuple(devices), max_context, reason, {})
    needed = math.ceil(report.needed_mib)
    params: dict[str, str | int | float] = {
        "model": checkpoint.name,
        "card": " + ".join(device.name for device in devices),
        "needed": needed,
        "available": report.available_mib,
        "margin": report.available_mib - needed if fits else math.ceil(report.lacking_mib),
        "context": load.context_tokens,
        "max_context": max_context,
        "chats": load.num_slots,
    }
    found = notes(checkpoint, load.context_tokens)
    if load.shape.has_experts and not load.kernel.stacks_experts(load.shape):
        found = (*found, ("plain_experts", {}))
    return replace(report, params=params, notes=found)


def _longest(
    checkpoint: Checkpoint,
    shape: ModelShape,
    devices: Sequence[DeviceMemory],
    kernels: Sequence[KernelSpec],
    num_chats: int,
) -> int:
    """The longest context that any of `kernels` leaves room for, uncaptured."""
    limit = checkpoint.max_context_tokens
    return max(_max_context(shape, devices, kernel, num_chats, limit) for kernel in kernels)


def _max_context(
    shape: ModelShape, devices: Sequence[DeviceMemory], kernel: KernelSpec, num_chats: int, limit: int
) -> int:
    """The longest context that fits, up to the model's own `limit`: the plan only grows with it."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if all_fit(plan_devices(shape, devices, kernel, middle, num_chats), devices):
            low = middle
        else:
            high = middle - 1
    return low


def _with_remedies(devices: Sequence[DeviceMemory], report: FitReport) -> FitReport:
    """What would make it fit: a shorter context, fewer chats, what others hold given back, or a larger GPU."""
    remedies: list[tuple[str, dict[str, str | int | float]]] = []
    if report.max_context >= MIN_USEFUL_TOKENS:
        remedies.append(("shorter_context", {"context": report.max_context}))
    sets = [[devices[index] for index in indexes] for indexes in usable_sets(report.load.shape, devices)]
    if report.load.num_slots > 1 and _any_fits(report.load, sets, 1):
        remedies.append(("one_chat", {"context": report.load.context_tokens}))
    others_mib = sum(device.others_mib - device.returning_mib for device in report.devices)
    alone = [replace(device, others_mib=0, returning_mib=0) for device in report.devices]
    if others_mib > 0 and _any_fits(report.load, [alone], report.load.num_slots):
        remedies.append(("end_others", {"others": others_mib}))
    remedies.append(("larger_card", {"needed": math.ceil(report.needed_mib)}))
    return replace(report, remedies=tuple(remedies))


def _any_fits(load: LoadPlan, sets: Sequence[Sequence[DeviceMemory]], num_chats: int) -> bool:
    """Whether `num_chats` of the load's context would fit on one of `sets` with its kernel."""
    return any(
        all_fit(plan_devices(load.shape, devices, load.kernel, load.context_tokens, num_chats), devices)
        for devices in sets
    )
