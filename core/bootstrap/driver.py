"""What the NVIDIA driver of this machine can run, asked before anything is installed: standard library only.

./llamadeck asks at every start, so slow imports stand inside the functions that need them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import ctypes

Version: TypeAlias = tuple[int, int]

# Under WSL the loader may find a stub first; what answers lies in Windows' own folder, which is not in every PATH.
WSL = Path("/usr/lib/wsl/lib")
NVML, CUDA = "libnvidia-ml.so.1", "libcuda.so.1"
SMI_S = 20
CAPABILITIES = ("--query-gpu=compute_cap", "--format=csv,noheader")
# The oldest driver for each major version of CUDA. It runs all minor versions of that, and of what came before.
OLDEST_DRIVERS = {13: 580, 12: 525, 11: 450}


@dataclass(frozen=True, slots=True)
class Driver:
    """`cuda` is the newest that it was made for, None where it does not tell; `capabilities` are those of the GPUs,
    as far as they are told."""

    cuda: Version | None = None
    version: str = ""
    capabilities: tuple[Version, ...] = ()


def read_driver(devices: Path = Path("/dev")) -> Driver | None:
    """None on a machine without an NVIDIA GPU."""
    for library in (NVML, str(WSL / NVML)):
        with suppress(OSError, AttributeError), nvml(library) as started:
            return _ask_nvml(started)
    if not has_gpu(devices):
        return None
    return _ask_smi() or _ask_cuda()


def has_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether it looks like a GPU, whatever the driver says."""
    return any(devices.glob("nvidia*")) or _find_smi() is not None


def cuda_of(driver_version: str) -> Version | None:
    """The major version of CUDA that came with a driver, as in "535.183.01"."""
    number = re.match(r"\d+", driver_version)
    majors = [major for major, oldest in OLDEST_DRIVERS.items() if number and int(number[0]) >= oldest]
    return (max(majors), 0) if majors else None


@contextmanager
def nvml(name: str) -> Iterator[ctypes.CDLL]:
    """NVIDIA's management library, started. Raises OSError where that cannot be."""
    import ctypes

    library = ctypes.CDLL(name)
    if code := library.nvmlInit_v2():
        raise OSError(code, "NVML cannot be started")
    try:
        yield library
    finally:
        library.nvmlShutdown()


def _ask_nvml(library: ctypes.CDLL) -> Driver | None:
    import ctypes

    number, text = ctypes.c_int(), ctypes.create_string_buffer(80)
    if library.nvmlDeviceGetCount_v2(ctypes.byref(number)) == 0 and number.value == 0:
        return None
    capabilities = []
    for index in range(number.value):
        gpu, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
        if not library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(gpu)) and not (
            library.nvmlDeviceGetCudaComputeCapability(gpu, ctypes.byref(major), ctypes.byref(minor))
        ):
            capabilities.append((major.value, minor.value))
    version = "" if library.nvmlSystemGetDriverVersion(text, len(text)) else text.value.decode("ascii", "replace")
    for name in ("nvmlSystemGetCudaDriverVersion_v2", "nvmlSystemGetCudaDriverVersion"):
        # Old drivers lack the second version, which counts libraries of a newer CUDA that lie beside the driver's own.
        ask = getattr(library, name, None)
        if ask is not None and not ask(ctypes.byref(number)) and number.value > 0:
            return Driver(split_version(number.value), version, tuple(capabilities))
    return Driver(cuda_of(version) or _ask_cuda().cuda, version, tuple(capabilities))


def _ask_smi() -> Driver | None:
    """By nvidia-smi, whose table has both versions in its head."""
    command = _find_smi()
    if command is None:
        return None
    told = _output_of(command)
    cuda = re.search(r"CUDA[A-Z ]* Version\s*:\s*(\d+)\.(\d+)", told, re.IGNORECASE)
    version = re.search(r"Driver Version\s*:\s*([\d.]+)", told)
    if not cuda and not version:
        return None
    known = (int(cuda[1]), int(cuda[2])) if cuda else cuda_of(version[1] if version else "")
    found = re.findall(r"^(\d+)\.(\d+)\s*$", _output_of(command, *CAPABILITIES), re.MULTILINE)
    return Driver(known, version[1] if version else "", tuple((int(major), int(minor)) for major, minor in found))


def _output_of(*command: str) -> str:
    import subprocess

    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SMI_S).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _ask_cuda() -> Driver:
    """By the library that torch itself asks; a container may have that one alone."""
    import ctypes

    number, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    for name in (CUDA, str(WSL / CUDA)):
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(name)
            if library.cuDriverGetVersion(ctypes.byref(number)) or number.value <= 0:
                continue
            cuda, capabilities = split_version(number.value), []
            if not library.cuInit(0) and not library.cuDeviceGetCount(ctypes.byref(number)):
                for index in range(number.value):
                    if not library.cuDeviceComputeCapability(ctypes.byref(major), ctypes.byref(minor), index):
                        capabilities.append((major.value, minor.value))
            return Driver(cuda, "", tuple(capabilities))
    return Driver()


def _find_smi() -> str | None:
    return shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path=str(WSL))


def split_version(number: int) -> Version:
    """12020 is CUDA 12.2."""
    return number // 1000, number % 1000 // 10
