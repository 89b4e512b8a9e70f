"""Holds a load on a GPU to its plan: what is free, the cap, what is held for later, plan against reality.

Knows how torch counts memory, and no layer of the model that takes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from core.engine.kernels import Device
from core.engine.messages import MemoryFacts
from core.engine.plan import MIB, SEGMENT_BYTES, MemoryPlan
from core.errors import EngineError
from core.fit import Card, card_from_gpu
from core.gpu import Gpu, read_snapshot


def find_card(gpus: Sequence[Gpu], device: Device) -> Card:
    """The GPU that torch calls the first, as NVML saw it in `gpus`, without what this process holds already.

    Where NVML does not list it, CUDA is asked, which counts this process's own context as taken.
    """
    properties = torch.cuda.get_device_properties(0)
    for gpu in gpus:
        if gpu.uuid and str(properties.uuid) in gpu.uuid and gpu.total_mib and gpu.free_mib is not None:
            return card_from_gpu(gpu, frozenset({os.getpid()}), device.has_compiler)
    free, total = torch.cuda.mem_get_info(0)
    return Card(
        properties.name,
        total // MIB,
        device.capability,
        others_mib=(total - free) // MIB,
        has_compiler=device.has_compiler,
    )


@contextmanager
def limited_to(plan: MemoryPlan, is_forced: bool) -> Iterator[None]:
    """Let torch's allocator have what `plan` says and no more; running out of it is an EngineError with the numbers.

    A forced load has no limit but the GPU's own.
    """
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0 if is_forced else min(1.0, plan.allocated / total))
    torch.cuda.reset_peak_memory_stats()
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise out_of_memory(plan, is_forced) from error


def out_of_memory(plan: MemoryPlan, is_forced: bool) -> EngineError:
    """What running out of GPU memory means: a forced load was told so; else the plan is wrong."""
    key = "forced_out_of_gpu_memory" if is_forced else "plan_exceeded"
    reached = torch.cuda.max_memory_reserved() // MIB
    return EngineError(key, planned=plan.allocated // MIB, reached=reached)


def settle(plan: MemoryPlan, is_forced: bool) -> MemoryFacts:
    """Plan and reality, once everything has run at full size.

    What the plan has left is taken and kept in torch's allocator: nobody else can have it, and nothing grows.
    """
    peak_bytes = torch.cuda.max_memory_reserved()
    left = 0 if is_forced else plan.allocated - torch.cuda.memory_reserved()
    if left >= SEGMENT_BYTES:
        torch.empty(left // SEGMENT_BYTES * SEGMENT_BYTES, dtype=torch.uint8, device="cuda")
    return MemoryFacts(plan, peak_bytes, own_context_bytes(), is_forced)


def own_context_bytes() -> int | None:
    """What this process holds beside torch's allocator: CUDA's context and libraries. None where NVML does not tell."""
    processes = [process for gpu in read_snapshot().gpus for process in gpu.processes if process.pid == os.getpid()]
    held_mib = sum(process.used_mib or 0 for process in processes)
    return held_mib * MIB - torch.cuda.memory_reserved() if held_mib else None
