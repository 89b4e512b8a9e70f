"""This machine's GPUs as pages see them: the newest reading, and why a load could not use them."""

from __future__ import annotations

from core.common.errors import GpuUseError
from core.gpu.snapshot import Gpu, GpuSnapshot
from core.gpu.torch_support import find_gpu_error, find_nvml_error, installed_torch, is_cpu_chosen, readable_gpus
from ui.shared.resources import engine, monitor

FIRST_READING_S = 2.0


def reading() -> GpuSnapshot | None:
    """The newest reading of the GPUs; the very first one is waited for."""
    return monitor().latest(FIRST_READING_S)


def gpus_here() -> list[Gpu]:
    """The GPUs whose memory can be read, in NVML's order."""
    latest = reading()
    return readable_gpus(latest.gpus if latest else ())


def gpu_error() -> GpuUseError | None:
    """Why a load could not use the GPUs here: as the last worker found it, else as far as it is sure without one."""
    latest, report = reading(), engine().local.gpu_report
    if latest is None or is_cpu_chosen():
        return None
    if report is None:
        return find_gpu_error(latest, installed_torch())
    return find_nvml_error(latest) or report.gpu_error
