"""The GPUs of this machine as NVML sees them, as values that cross threads.

Order: NVML counts GPUs by PCI bus. CUDA counts the fastest first unless CUDA_DEVICE_ORDER=PCI_BUS_ID is set,
so the starter of a CUDA process sets it, or names the GPU by `uuid`, which both understand.

PCIe throughput is left out: NVML counts bytes for 20 ms at every such question, and a snapshot should cost 2.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from core.common.errors import DeckError
from core.gpu.cuda_driver import cuda_version
from core.gpu.nvml import UNNAMED, Nvml, ask, device_error, start_error

BYTES_PER_MIB = 2**20
NAME_LENGTH = 60

ProcessKind = Literal["compute", "graphics", "both"]


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds memory of a GPU. In a container NVML shows the container's own ones, or none."""

    pid: int
    used_mib: int | None
    name: str | None
    kind: ProcessKind


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG instance of it; None is what it, or its driver, does not tell.

    total = used + free + reserved; `reserved_mib` is what driver and firmware keep and no process can have.
    Drivers before 510 do not tell it apart: then it is None and part of `used_mib`.
    A MIG instance has memory and processes of its own; temperature, power, clocks and the like are its GPU's.
    `error` says why a GPU cannot be used; what else stands here is then the little that it still told.
    """

    index: int
    mig_index: int | None = None
    uuid: str | None = None
    name: str | None = None
    total_mib: int | None = None
    free_mib: int | None = None
    used_mib: int | None = None
    reserved_mib: int | None = None
    utilization_percent: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    fan_percent: int | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    ecc_enabled: bool | None = None
    mig_enabled: bool | None = None
    compute_capability: tuple[int, int] | None = None
    processes: tuple[GpuProcess, ...] = ()
    error: DeckError | None = None

    @property
    def label(self) -> str:
        """What tells it from its neighbours: "0", or "0:2" for a MIG instance."""
        return str(self.index) if self.mig_index is None else f"{self.index}:{self.mig_index}"


@dataclass(frozen=True, slots=True)
class GpuSnapshot:
    """All GPUs at one moment (`time_s`, seconds of time.time()). With no GPU at all, `error` says why."""

    time_s: float
    driver_version: str | None = None
    cuda_version: str | None = None
    gpus: tuple[Gpu, ...] = ()
    error: DeckError | None = None


def read_snapshot() -> GpuSnapshot:
    """Ask NVML for everything, in a few milliseconds. A broken GPU or driver raises nothing; thread-safe."""
    return _snapshot(_process_nvml())


@cache
def _process_nvml() -> Nvml:
    return Nvml()


def _snapshot(nvml: Nvml) -> GpuSnapshot:
    now = time.time()
    try:
        pynvml = nvml.started()
    except DeckError as error:
        return GpuSnapshot(now, error=error)
    try:
        return _read_all(nvml, pynvml, now)
    except pynvml.NVMLError as error:
        nvml.forget()
        return GpuSnapshot(now, error=start_error(error.value, str(error)))


def _read_all(nvml: Nvml, pynvml: ModuleType, now: float) -> GpuSnapshot:
    gpus: list[Gpu] = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        gpus += _read_device(nvml, pynvml, index)
    return GpuSnapshot(
        time_s=now,
        driver_version=ask(pynvml, "nvmlSystemGetDriverVersion"),
        cuda_version=cuda_version(ask(pynvml, "nvmlSystemGetCudaDriverVersion")),
        gpus=tuple(gpus),
        error=None if gpus else DeckError("gpu_none_found"),
    )


def _read_device(nvml: Nvml, pynvml: ModuleType, index: int) -> list[Gpu]:
    """One GPU, or its MIG instances in its place: with MIG on, CUDA can use nothing but those."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        name = ask(pynvml, "nvmlDeviceGetName", handle)
        nvml.names[index] = name
        gpu = _with_memory(pynvml, handle, _read_sensors(pynvml, handle, Gpu(index, name=name)))
        if not gpu.mig_enabled:
            return [gpu]
        instances = _read_mig_instances(pynvml, handle, gpu)
    except pynvml.NVMLError as error:
        name = nvml.names.get(index)
        return [Gpu(index, name=name, error=device_error(error.value, str(error), index, name))]
    empty = DeckError("gpu_mig_empty", index=index, name=name or UNNAMED)
    return instances or [replace(gpu, error=empty)]


def _read_sensors(pynvml: ModuleType, handle: Any, gpu: Gpu) -> Gpu:
    """`gpu` with the readings that belong to the whole GPU, not to a MIG instance."""

    def reading(function: str, *arguments: object) -> Any:
        return ask(pynvml, function, handle, *arguments)

    utilization = reading("nvmlDeviceGetUtilizationRates")
    return replace(
        gpu,
        utilization_percent=utilization and utilization.gpu,
        # The call that is to replace this one is missing in the drivers that most people have.
        temperature_c=reading("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
        power_w=_watts(reading("nvmlDeviceGetPowerUsage")),
        power_limit_w=_watts(reading("nvmlDeviceGetEnforcedPowerLimit")),
        sm_clock_mhz=reading("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM),
        memory_clock_mhz=reading("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_MEM),
        fan_percent=reading("nvmlDeviceGetFanSpeed"),
        pcie_generation=reading("nvmlDeviceGetCurrPcieLinkGeneration"),
        pcie_width=reading("nvmlDeviceGetCurrPcieLinkWidth"),
        ecc_enabled=_is_on(reading("nvmlDeviceGetEccMode")),
        mig_enabled=_is_on(reading("nvmlDeviceGetMigMode")),
        compute_capability=reading("nvmlDeviceGetCudaComputeCapability"),
    )


def _with_memory(pynvml: ModuleType, handle: Any, gpu: Gpu) -> Gpu:
    """`gpu` with the identity, memory and processes of `handle`, which is the whole GPU or one MIG instance.

    Free is rounded down to MiB and reserved up; used is the rest, so that the sum holds.
    """
    memory = ask(pynvml, "nvmlDeviceGetMemoryInfo", handle, pynvml.nvmlMemory_v2)
    reserved_mib = None if memory is None else -(-memory.reserved // BYTES_PER_MIB)
    memory = memory or ask(pynvml, "nvmlDeviceGetMemoryInfo", handle)
    gpu = replace(
        gpu,
        uuid=ask(pynvml, "nvmlDeviceGetUUID", handle),
        total_mib=None,
        free_mib=None,
        used_mib=None,
        reserved_mib=reserved_mib,
        processes=_read_processes(pynvml, handle),
    )
    if memory is None:
        return gpu
    total_mib, free_mib = memory.total // BYTES_PER_MIB, memory.free // BYTES_PER_MIB
    used_mib = max(0, total_mib - free_mib - (reserved_mib or 0))
    return replace(gpu, total_mib=total_mib, free_mib=free_mib, used_mib=used_mib)


def _read_mig_instances(pynvml: ModuleType, handle: Any, gpu: Gpu) -> list[Gpu]:
    instances = []
    for mig_index in range(ask(pynvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
        mig = ask(pynvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, mig_index)
        if mig is None:
            continue  # the number of an instance that was destroyed stays empty
        instance = replace(gpu, mig_index=mig_index, name=ask(pynvml, "nvmlDeviceGetName", mig) or gpu.name)
        # Utilization is counted for the whole GPU only: it would be wrong for each instance.
        instance = replace(instance, utilization_percent=None)
        instances.append(_with_memory(pynvml, mig, instance))
    return instances


def _read_processes(pynvml: ModuleType, handle: Any) -> tuple[GpuProcess, ...]:
    """The processes of both of NVML's lists, the largest first; one that computes and draws is one."""
    compute = _pid_memory(ask(pynvml, "nvmlDeviceGetComputeRunningProcesses", handle))
    graphics = _pid_memory(ask(pynvml, "nvmlDeviceGetGraphicsRunningProcesses", handle))
    processes = []
    for pid, used_mib in {**graphics, **compute}.items():
        kind: ProcessKind = "compute" if pid not in graphics else "graphics" if pid not in compute else "both"
        processes.append(GpuProcess(pid, used_mib, process_name(pid), kind))
    return tuple(sorted(processes, key=lambda process: (-(process.used_mib or 0), process.pid)))


def _pid_memory(entries: list[Any] | None) -> dict[int, int | None]:
    return {
        entry.pid: None if entry.usedGpuMemory is None else entry.usedGpuMemory // BYTES_PER_MIB
        for entry in entries or []
    }


def process_name(pid: int) -> str | None:
    """A short name for process `pid`, or None where it is gone or hidden.

    Not the whole command line: that may hold a password.
    """
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        name = short_command(words) or Path(f"/proc/{pid}/comm").read_text("utf-8", "replace")
    except OSError:
        return None
    return "".join(letter for letter in name.strip() if letter.isprintable())[:NAME_LENGTH] or None


def short_command(words: list[str]) -> str:
    """The program, and for Python the script or module too: "python3 train.py", "python -m vllm"."""
    program = Path(words[0].split(" -")[0]).name
    if not program.startswith("python") or len(words) < 2:
        return program
    if words[1] == "-m":
        return f"{program} -m {words[2]}" if len(words) > 2 else program
    return program if words[1].startswith("-") else f"{program} {Path(words[1]).name}".strip()


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _is_on(mode: list[int] | None) -> bool | None:
    """NVML's [current, pending] as whether it is on now."""
    return None if mode is None else bool(mode[0])
