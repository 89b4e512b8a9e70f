"""From a Load command to a LoadPlan: which devices there are, and the fastest kernel that fits and computes right."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.experts import expert_matrix
from core.common.errors import EngineError
from core.engine.protocol import Load, Stage
from core.gpu.snapshot import GpuSnapshot, read_snapshot
from core.gpu.torch_support import build_error, has_code
from core.memory.device_memory import DeviceMemory
from core.memory.fit import checked_context, require_fit
from core.memory.kernels.registry import choose_kernel, has_c_compiler
from core.memory.kernels.spec import Device
from core.memory.load_plan import DevicePlan, LoadPlan, choose_dtype
from core.memory.model_shape import read_shape
from core.memory.step_sizes import StepSizes
from core.worker.gpu_check import known_torch, require_no_gpu
from core.worker.kernels import cpu_int4_prefill
from core.worker.memory_guard import measure_devices
from core.worker.model.device_map import DeviceMap
from core.worker.model.expert_adapter_check import check_expert_adapters
from core.worker.model.kernel_check import check_experts, check_kernel

log = logging.getLogger(__name__)
# CUDA's default stream of the calling thread.
PER_THREAD_STREAM = 2
# On a CPU a chunk stops the other chats for about as long with its matrix units as a smaller one without them.
CPU_CHUNK_TOKENS, SLOW_CPU_CHUNK_TOKENS = 256, 64
# Where each stage begins in the whole load; importing the libraries has been done by then.
STAGE_BEGIN: dict[Stage, float] = {
    "start": 0.0,
    "compile": 0.12,
    "read": 0.15,
    "prepare": 0.85,
    "warm_up": 0.9,
}

Progress = Callable[[Stage, float], None]


def plan_load(checkpoint: Checkpoint, command: Load, progress: Progress) -> LoadPlan:
    """What to do for `command`, with a kernel that is compiled and checked. Raises DeckError where that cannot be."""
    snapshot = read_snapshot()
    devices = [Device("cpu")] if command.on_cpu else find_devices(snapshot)
    if devices[0].kind == "cpu":
        return plan_cpu_load(checkpoint, command)
    return plan_gpu_load(checkpoint, measure_devices(snapshot.gpus, devices), devices, command, progress)


def find_devices(snapshot: GpuSnapshot) -> list[Device]:
    """The GPUs that CUDA shows; the CPU where there is none. Raises GpuUseError where torch can use none of them."""
    if not torch.cuda.is_available():
        require_no_gpu(snapshot)
        return [Device("cpu")]
    compiler, known = has_c_compiler(), known_torch()
    capabilities = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    devices = [Device("cuda", one, has_code(known, one), compiler) for one in capabilities]
    if not any(device.has_code for device in devices):
        names = [torch.cuda.get_device_name(index) for index in range(len(devices))]
        raise build_error(", ".join(names), max(capabilities), known)
    return devices


def plan_cpu_load(checkpoint: Checkpoint, command: Load) -> LoadPlan:
    device = Device("cpu")
    kernel, reason = choose_kernel(checkpoint, device, command.kernel)
    return LoadPlan(
        kernel=kernel,
        kernel_reason=reason,
        dtype=choose_dtype(checkpoint, kernel, device),
        device_kind="cpu",
        devices=(DevicePlan(0),),
        shape=read_shape(checkpoint, merged=True, adapters=command.adapters, cache_bits=command.cache.bits),
        is_captured=False,
        context_tokens=checked_context(checkpoint, command.context_tokens),
        num_slots=command.num_slots,
        sizes=StepSizes(CPU_CHUNK_TOKENS if cpu_int4_prefill.is_supported() else SLOW_CPU_CHUNK_TOKENS, 0),
        cache=command.cache,
    )


def plan_gpu_load(
    checkpoint: Checkpoint,
    memories: Sequence[DeviceMemory],
    devices: Sequence[Device],
    command: Load,
    progress: Progress,
) -> LoadPlan:
    """The fastest kernel that fits, compiled and checked, on the GPU where the model fits, or on several.

    `memories` and `devices` are in CUDA's order. A kernel that cannot be compiled here or computes something wrong is
    left out, unless it was asked for by name.
    """
    refused: list[str] = []
    able = [index for index, device in enumerate(devices) if device.has_code]
    while True:
        report = require_fit(
            checkpoint,
            [memories[index] for index in able],
            command.context_tokens,
            command.num_slots,
            command.kernel,
            command.force,
            refused,
            command.adapters,
            command.cache,
        )
        chosen = tuple(replace(device, index=able[device.index]) for device in report.load.devices)
        plan = replace(report.load, devices=chosen, is_forced=command.force)
        try:
            progress("compile", STAGE_BEGIN["compile"])
            check_kernels(plan, checkpoint)
        except EngineError as error:
            if command.kernel is not None:
                raise
            log.warning("%s is not used: %s", plan.kernel.name, error)
            refused.append(plan.kernel.name)
            continue
        return plan


def check_kernels(plan: LoadPlan, checkpoint: Checkpoint) -> None:
    """Check the kernel on every GPU, which compiles it. Raises EngineError where it is of no use."""
    devices, dtype = DeviceMap.of_plan(plan).devices, getattr(torch, plan.dtype)
    for device in reversed(devices):
        torch.cuda.set_device(device)
        use_capturable_stream(device)
        # Whatever packed them, kernels get them in one form.
        for format in {replace(matrix.format, packing="gptq_v2") for matrix in checkpoint.matrices.values()}:
            check_kernel(plan.kernel, format, dtype, device)
        of_experts = [matrix for name, matrix in checkpoint.matrices.items() if expert_matrix(name)]
        for format in {replace(matrix.format, packing="gptq_v2") for matrix in of_experts}:
            check_experts(plan.kernel, format, dtype, device)
            if plan.shape.adapters.reaches_experts:
                check_expert_adapters(plan.kernel, format, dtype, device)


def use_capturable_stream(device: torch.device | None = None) -> None:
    """Let this thread's work on a GPU run on a stream that can be captured: the usual default stream cannot."""
    torch.cuda.set_stream(torch.cuda.ExternalStream(PER_THREAD_STREAM, device))
