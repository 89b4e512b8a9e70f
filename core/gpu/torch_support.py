"""Whether torch can use the GPUs that NVML lists, and if not, why and what to do; found out without torch.

What is sure beforehand is read off: which torch is installed, what the driver runs, what the environment and the
permissions of the devices say. Where CUDA itself was asked as well (core/gpu/cuda_driver.py), it has the last word.
"""

from __future__ import annotations

import grp
import importlib.util
import os
import pwd
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.bootstrap.driver import OLDEST_DRIVERS, Driver
from core.bootstrap.torch_build import read_torch_version, runs_on
from core.common.errors import DeckError, GpuUseError
from core.gpu.cuda_driver import NO_DEVICE, CudaDriver
from core.gpu.nvml import UNNAMED
from core.gpu.snapshot import Gpu, GpuSnapshot

DEVICES = Path("/dev")
PCI_DEVICES = Path("/sys/bus/pci/devices")
# Set to 1 by ./llamadeck run --cpu.
CPU_VARIABLE = "LLAMADECK_CPU"
# The oldest CUDA that any torch is built for which this program can use.
OLDEST_CUDA = 12
# NVML's errors where a driver is there and broken. Without a driver, or without a GPU, models run on the CPU.
BROKEN_DRIVERS = ("gpu_version_mismatch", "gpu_no_permission", "gpu_driver_failed")
# The codes of cuInit that have a sentence of their own.
CUDA_ERRORS = {
    34: "gpu_cuda_stub",
    802: "gpu_cuda_not_ready",
    803: "gpu_cuda_mismatch",
    804: "gpu_cuda_compat",
    999: "gpu_cuda_unknown",
}
Capability = tuple[int, int]


@dataclass(frozen=True, slots=True)
class InstalledTorch:
    """`cuda` is the version that it was built for, None for the CPU's build.

    `architectures` are those that it has code for, as in "sm_86" and "compute_120"; None where they are not known.
    """

    version: str
    cuda: str | None
    architectures: tuple[str, ...] | None = None


def is_cpu_chosen() -> bool:
    """Whether this was started with --cpu, which puts every model on the CPU."""
    return os.environ.get(CPU_VARIABLE) == "1"


def installed_torch() -> InstalledTorch | None:
    """The torch that an engine of this installation would import, read from its folder."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    there = read_torch_version(Path(found.origin).parents[1])
    return InstalledTorch(there.built, there.cuda and "{}.{}".format(*there.cuda)) if there else None


def find_gpu_error(
    snapshot: GpuSnapshot,
    torch: InstalledTorch | None,
    driver: CudaDriver | None = None,
    environment: Mapping[str, str] = os.environ,
    devices: Path = DEVICES,
) -> GpuUseError | None:
    """Why no GPU of `snapshot` can be used; None where one can, or where there is none to use.

    `driver` None: CUDA was not asked, and only what is sure without it is said.
    """
    gpus = snapshot.gpus
    if error := find_nvml_error(snapshot, environment):
        return error
    if not gpus or torch is None:
        return None
    if torch.cuda is None:
        return GpuUseError("gpu_cpu_build", gpus=names_of(gpus), version=torch.version)
    seen = visible_gpus(gpus, environment)
    if not seen and not (driver and driver.num_gpus):
        value = environment.get("CUDA_VISIBLE_DEVICES", "")
        return GpuUseError("gpu_hidden", gpus=names_of(gpus), value=value)
    well = [gpu for gpu in seen or gpus if gpu.error is None]
    closed = closed_device(gpus, devices) if driver is None or driver.code else None
    if closed is not None:
        return _no_permission(closed, names_of(well))
    return (
        _start_error(snapshot, well, driver)
        or _version_error(snapshot, well, torch, driver)
        or _build_error(well, torch)
    )


def find_nvml_error(snapshot: GpuSnapshot, environment: Mapping[str, str] = os.environ) -> GpuUseError | None:
    """What NVML itself says is wrong at this moment: with the driver, or with every GPU that CUDA would show."""
    if not snapshot.gpus:
        error = snapshot.error
        return _as_use_error(error) if error is not None and error.key in BROKEN_DRIVERS else None
    errors = [gpu.error for gpu in visible_gpus(snapshot.gpus, environment)]
    return _as_use_error(errors[0]) if errors and errors[0] is not None and None not in errors else None


def visible_gpus(gpus: Sequence[Gpu], environment: Mapping[str, str] = os.environ) -> list[Gpu]:
    """The GPUs that CUDA shows a process: whole GPUs, or one MIG instance.

    CUDA_VISIBLE_DEVICES counts by PCI bus here, and is read up to the first name that is none.
    """
    seen: list[Gpu] = list(gpus)
    if (wish := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        seen = []
        for name in wish.split(","):
            named = [gpu for gpu in gpus if _is_called(gpu, name.strip())]
            if not named or named[0] in seen:
                break
            seen += named
    whole = [gpu for gpu in seen if not gpu.mig_enabled]
    return whole or sorted(seen, key=lambda gpu: gpu.error is not None)[:1]


def readable_gpus(gpus: Iterable[Gpu]) -> list[Gpu]:
    """The GPUs whose memory can be read."""
    return [gpu for gpu in gpus if gpu.error is None and gpu.total_mib and gpu.free_mib is not None]


def usable_gpus(gpus: Sequence[Gpu], torch: InstalledTorch | None) -> list[Gpu]:
    """The GPUs that can be read, that CUDA shows, and that this torch has code for."""
    readable = readable_gpus(visible_gpus(gpus))
    return [gpu for gpu in readable if torch is None or has_code(torch, gpu.compute_capability)]


def has_code(torch: InstalledTorch, capability: Capability | None) -> bool:
    """Whether `torch` has code for this compute capability; judged by its CUDA version where no more is known."""
    if capability is None:
        return True
    if torch.architectures:
        return any(_runs_on(architecture, capability) for architecture in torch.architectures)
    return torch.cuda is None or runs_on(_numbers(torch.cuda), Driver(capabilities=(capability,)))


def has_nvidia_gpu(devices: Path = PCI_DEVICES) -> bool:
    """Whether an NVIDIA display controller is on the PCI bus, whatever the driver says."""
    return any(_is_nvidia_gpu(device) for device in devices.glob("*"))


def names_of(gpus: Iterable[Gpu]) -> str:
    """What to call the GPUs together, as in "2 × NVIDIA A40"."""
    counts = Counter(gpu.name or UNNAMED for gpu in gpus)
    return " + ".join(f"{count} × {name}" if count > 1 else name for name, count in counts.items())


def closed_device(gpus: Iterable[Gpu], devices: Path = DEVICES) -> Path | None:
    """A device file that CUDA needs and this user may not use. A missing file is left to the driver."""
    names = ["nvidiactl", "nvidia-uvm", *(f"nvidia{index}" for index in sorted({gpu.index for gpu in gpus}))]
    there = [devices / name for name in names if (devices / name).exists()]
    return next((path for path in there if not os.access(path, os.R_OK | os.W_OK)), None)


def _start_error(snapshot: GpuSnapshot, gpus: list[Gpu], driver: CudaDriver | None) -> GpuUseError | None:
    """Why CUDA does not start, where it was asked."""
    if driver is None or driver.code in (0, NO_DEVICE):
        return None
    if driver.code is None:
        return GpuUseError("gpu_no_libcuda", gpus=names_of(gpus))
    key = CUDA_ERRORS.get(driver.code, "gpu_cuda_failed")
    return GpuUseError(key, gpus=names_of(gpus), code=driver.code, name=driver.name or "?",
                       driver=snapshot.driver_version or "?")  # fmt: skip


def _version_error(
    snapshot: GpuSnapshot, gpus: list[Gpu], torch: InstalledTorch, driver: CudaDriver | None
) -> GpuUseError | None:
    """Whether the driver is too old for this torch, or CUDA counts no GPU although nothing is known against it."""
    runs, built = (driver and driver.cuda) or snapshot.cuda_version, torch.cuda or ""
    runs_major, built_major = _numbers(runs)[0], _numbers(built)[0]
    if runs and runs_major < built_major:
        key = "gpu_driver_old" if runs_major >= OLDEST_CUDA else "gpu_driver_too_old"
        return GpuUseError(
            key, gpus=names_of(gpus), driver=snapshot.driver_version or "?", runs=runs, version=torch.version,
            built=built, needed=OLDEST_DRIVERS.get(built_major, "?"), oldest=OLDEST_DRIVERS[OLDEST_CUDA],
        )  # fmt: skip
    if driver is not None and not driver.num_gpus:
        return GpuUseError("gpu_cuda_none", gpus=names_of(gpus))
    return None


def _build_error(gpus: list[Gpu], torch: InstalledTorch) -> GpuUseError | None:
    if not gpus or any(has_code(torch, gpu.compute_capability) for gpu in gpus):
        return None
    return build_error(names_of(gpus), max(gpu.compute_capability or (0, 0) for gpu in gpus), torch)


def build_error(names: str, capability: Capability, torch: InstalledTorch) -> GpuUseError:
    """That `torch` has no code for the GPUs called `names`."""
    key = "gpu_newer_than_torch" if capability >= (10, 0) else "gpu_older_than_torch"
    shown = ".".join(map(str, capability))
    return GpuUseError(key, gpus=names, capability=shown, version=torch.version, built=torch.cuda or "?")


def _no_permission(path: Path, names: str) -> GpuUseError:
    status = path.stat()
    owner = f"{_name(pwd.getpwuid, status.st_uid)}:{_name(grp.getgrgid, status.st_gid)}"
    return GpuUseError("gpu_device_closed", gpus=names, file=str(path), owner=owner,
                       mode=f"{stat.S_IMODE(status.st_mode):o}", user=_name(pwd.getpwuid, os.geteuid()))  # fmt: skip


def _name(look_up: Callable[[int], Sequence[Any]], number: int) -> str:
    try:
        return str(look_up(number)[0])
    except KeyError:
        return str(number)


def _is_nvidia_gpu(device: Path) -> bool:
    try:
        vendor, kind = (device / "vendor").read_text("ascii"), (device / "class").read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return False
    return vendor.strip() == "0x10de" and kind.startswith("0x03")


def _is_called(gpu: Gpu, name: str) -> bool:
    if name.isdecimal():
        return gpu.index == int(name)
    if name.startswith("MIG-GPU-"):
        return gpu.mig_index is not None  # as drivers before 470 name an instance
    return name.startswith(("GPU-", "MIG-")) and len(name) > 4 and (gpu.uuid or "").lower().startswith(name.lower())


def _runs_on(architecture: str, capability: Capability) -> bool:
    """Code of "sm_86" runs on 8.6 to 8.9, "sm_90a" on 9.0 alone; "compute_86" is compiled for every newer GPU."""
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
    if match is None:
        return False
    own = (int(match[2]), int(match[3]))
    if match[4] == "a":
        return own == capability
    return own <= capability and (match[1] == "compute" or own[0] == capability[0])


def _numbers(version: str | None) -> tuple[int, int]:
    major, minor, *_ = [*map(int, re.findall(r"\d+", version or "")), 0, 0]
    return major, minor


def _as_use_error(error: DeckError) -> GpuUseError:
    return GpuUseError(error.key, **error.params)
