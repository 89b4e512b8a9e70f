"""Holds a load on a GPU to its plan: what is free, the cap, what is held for later, plan against reality."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from core.common.errors import EngineError
from core.engine.protocol import MemoryFacts
from core.gpu.snapshot import Gpu, read_snapshot
from core.memory.device_memory import DeviceMemory
from core.memory.kernels.spec import Device
from core.memory.plan import MemoryPlan, sum_plans
from core.memory.sizes import MIB, SEGMENT_BYTES


def measure_devices(gpus: Sequence[Gpu], devices: Sequence[Device]) -> list[DeviceMemory]:
    """The GPUs in torch's order, as NVML saw them in `gpus`, without what this process holds already.

    Where NVML does not list one, CUDA is asked, which counts this process's own context as taken.
    """
    return [_measure_device(gpus, index, device) for index, device in enumerate(devices)]


def _measure_device(gpus: Sequence[Gpu], index: int, device: Device) -> DeviceMemory:
    properties = torch.cuda.get_device_properties(index)
    for gpu in gpus:
        if gpu.uuid and str(properties.uuid) in gpu.uuid and gpu.total_mib and gpu.free_mib is not None:
            own = frozenset({os.getpid()})
            return DeviceMemory.measured(gpu, own, device.has_c_compiler)
    free, total = torch.cuda.mem_get_info(index)
    return DeviceMemory(
        properties.name,
        total // MIB,
        device.capability,
        others_mib=(total - free) // MIB,
        has_c_compiler=device.has_c_compiler,
    )


@contextmanager
def memory_cap(plans: Sequence[MemoryPlan], devices: Sequence[torch.device], is_forced: bool) -> Iterator[None]:
    """Let torch's allocator have what each device's plan says and no more; running out of it is an EngineError with the
    numbers.

    A forced load has no limit but the GPU's own.
    """
    for plan, device in zip(plans, devices, strict=True):
        total = torch.cuda.get_device_properties(device).total_memory
        fraction = 1.0 if is_forced else min(1.0, plan.allocated / total)
        torch.cuda.set_per_process_memory_fraction(fraction, device)
        torch.cuda.reset_peak_memory_stats(device)
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise out_of_memory(sum(plan.allocated for plan in plans), is_forced) from error


def out_of_memory(planned_bytes: int, is_forced: bool) -> EngineError:
    """What running out of GPU memory means: a forced load was told so; else the plan is wrong."""
    key = "forced_out_of_gpu_memory" if is_forced else "plan_exceeded"
    return EngineError(key, planned=planned_bytes // MIB, reached=_peak_bytes() // MIB)


def reserve_remaining(
    plans: Sequence[MemoryPlan], devices: Sequence[torch.device], is_forced: bool, loaded_bytes: int
) -> MemoryFacts:
    """Plan and reality, once everything has run at full size; `loaded_bytes` were allocated once the weights were read.

    What the plan has left is taken and kept in torch's allocator: nobody else can have it, and nothing grows.
    """
    peak_bytes = _peak_bytes()
    for plan, device in zip(plans, devices, strict=True):
        left = 0 if is_forced else plan.allocated - torch.cuda.memory_reserved(device)
        if left >= SEGMENT_BYTES:
            torch.empty(left // SEGMENT_BYTES * SEGMENT_BYTES, dtype=torch.uint8, device=device)
    return MemoryFacts(sum_plans(plans), loaded_bytes, peak_bytes, own_context_bytes(), is_forced)


def allocated_bytes() -> int:
    """What tensors take now on all GPUs."""
    return sum(torch.cuda.memory_allocated(index) for index in range(torch.cuda.device_count()))


def _peak_bytes() -> int:
    return sum(torch.cuda.max_memory_reserved(index) for index in range(torch.cuda.device_count()))


def _reserved_bytes() -> int:
    return sum(torch.cuda.memory_reserved(index) for index in range(torch.cuda.device_count()))


def own_context_bytes() -> int | None:
    """What this process holds beside torch's allocator: CUDA's context and libraries. None where NVML does not tell."""
    processes = [process for gpu in read_snapshot().gpus for process in gpu.processes if process.pid == os.getpid()]
    held_mib = sum(process.used_mib or 0 for process in processes)
    return held_mib * MIB - _reserved_bytes() if held_mib else None
