"""In which ways a model can be loaded on GPUs: on which of them, by which kernel, in steps of which sizes; and the plan
of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.checkpoint.recurrent import Mamba2, ShortConv
from core.memory.cache_choice import EVERY_CHAT_FULL, CacheChoice
from core.memory.device_memory import DeviceMemory
from core.memory.kernels.registry import able_kernels
from core.memory.kernels.spec import Device, KernelSpec
from core.memory.model_shape import ModelShape
from core.memory.plan import MemoryPlan, make_plan
from core.memory.sizes import MIB
from core.memory.split_plan import split_plan
from core.memory.step_sizes import EXPERT_CHUNK_TOKENS, LARGE_CHUNK_TOKENS, LEAN_SIZES, USUAL_SIZES, StepSizes


@dataclass(frozen=True, slots=True)
class LoadWay:
    """A merged `shape` is loaded for captured steps."""

    shape: ModelShape
    kernel: KernelSpec
    sizes: StepSizes

    @property
    def is_captured(self) -> bool:
        return self.shape.is_merged

    @property
    def is_lean(self) -> bool:
        """Whether no other way with this shape and kernel takes less."""
        return self.sizes == LEAN_SIZES

    def plan(
        self, devices: Sequence[DeviceMemory], context_tokens: int, num_chats: int, cache: CacheChoice
    ) -> tuple[MemoryPlan, ...]:
        return plan_devices(self.shape, devices, self.kernel, context_tokens, num_chats, cache, self.sizes)


def load_ways(
    plain: ModelShape, merged: ModelShape, kernels: Sequence[KernelSpec], num_devices: int, num_tokens: int
) -> list[LoadWay]:
    """The fastest first: captured steps, with what large ones need, before plain ones. num_tokens: of all chats
    together, than which no pass needs to be larger."""
    capturing = [kernel for kernel in kernels if kernel.can_capture(merged)]
    # A split plan is even with the usual chunks.
    large = large_sizes(merged, num_tokens) if num_devices == 1 else []
    captured = [LoadWay(merged, kernel, sizes) for kernel in capturing for sizes in (*large, USUAL_SIZES)]
    captured += [LoadWay(merged, kernel, LEAN_SIZES) for kernel in capturing]
    return captured + [LoadWay(plain, kernel, sizes) for kernel in kernels for sizes in (USUAL_SIZES, LEAN_SIZES)]


def large_sizes(shape: ModelShape, num_tokens: int) -> list[StepSizes]:
    """Of passes over more tokens of prompts, the fastest first. A recurrent layer without kernels of its own takes many
    operations a block of tokens, and gains nothing; experts beside it do."""
    by_torch = any(isinstance(layer.recurrent, Mamba2 | ShortConv) for layer, _ in shape.layers)
    sizes = EXPERT_CHUNK_TOKENS if shape.has_experts else () if by_torch else LARGE_CHUNK_TOKENS
    return [StepSizes(size) for size in sizes if size <= num_tokens]


def plan_devices(
    shape: ModelShape,
    devices: Sequence[DeviceMemory],
    kernel: KernelSpec,
    context_tokens: int,
    num_chats: int,
    cache: CacheChoice = EVERY_CHAT_FULL,
    sizes: StepSizes = LEAN_SIZES,
) -> tuple[MemoryPlan, ...]:
    """One plan a device; a merged shape is planned captured. By default with the sizes that take the least, which
    decide whether it fits."""
    needs = context_tokens, num_chats, sizes, shape.is_merged, cache
    if len(devices) == 1:
        return (make_plan(shape, kernel, devices[0].capability, *needs),)
    capabilities = [device.capability for device in devices]
    return split_plan(shape, kernel, capabilities, [device.available_mib * MIB for device in devices], *needs)


def all_fit(plans: Sequence[MemoryPlan], devices: Sequence[DeviceMemory]) -> bool:
    return all(plan.total <= device.available_mib * MIB for plan, device in zip(plans, devices, strict=True))


def longest_context(
    ways: Sequence[LoadWay],
    devices: Sequence[DeviceMemory],
    num_chats: int,
    cache: CacheChoice,
    limit: int,
    least: int = 0,
) -> int:
    """The longest context up to `limit` tokens that any of `ways` leaves room for, `least` where none has for more: a
    plan only grows with it."""
    longest = least
    for way in ways:

        def fits(tokens: int, way: LoadWay = way) -> bool:
            return all_fit(way.plan(devices, tokens, num_chats, cache), devices)

        # Most often a way has room for all, or for no more than one before.
        if longest == limit or fits(limit):
            return limit
        if not fits(longest + 1):
            continue
        low, high = longest + 1, limit - 1
        while low < high:
            middle = (low + high + 1) // 2
            if fits(middle):
                low = middle
            else:
                high = middle - 1
        longest = low
    return longest


def device_sets(devices: Sequence[DeviceMemory]) -> list[list[int]]:
    """The index of each device by itself, then of the two with the most room, the three, ...: one that is full should
    not take a part."""
    by_room = sorted(range(len(devices)), key=lambda index: -devices[index].available_mib)
    return [*([index] for index in range(len(devices))), *(sorted(by_room[:n]) for n in range(2, len(devices) + 1))]


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
