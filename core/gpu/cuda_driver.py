"""CUDA's own word on whether it starts: libcuda.so.1 asked as torch asks it.

Asked in a process of its own (`python -m core.gpu.cuda_driver`), because a CUDA that failed to start stays failed in
its process, and because one that started keeps the GPU awake.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from dataclasses import asdict, dataclass

from core.bootstrap.driver import CUDA, split_version
from core.common.paths import ROOT

NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
# How long to wait for a driver that hangs.
ASK_S = 20.0


@dataclass(frozen=True, slots=True)
class CudaDriver:
    """What cuInit says. `code` is 0 where CUDA starts, None without a libcuda.so.1; `name` is the error's own name.
    `cuda` is the newest CUDA that the driver runs, as in "12.2"; None where it does not tell."""

    code: int | None
    name: str = ""
    num_gpus: int = 0
    cuda: str | None = None


def ask_cuda() -> CudaDriver:
    """Start CUDA in this process and say how that went."""
    try:
        library = ctypes.CDLL(CUDA)
        code = int(library.cuInit(0))
    except (OSError, AttributeError):
        return CudaDriver(None)
    number, count, name = ctypes.c_int(), ctypes.c_int(), ctypes.c_char_p()
    library.cuDriverGetVersion(ctypes.byref(number))
    if code == 0:
        library.cuDeviceGetCount(ctypes.byref(count))
    else:
        library.cuGetErrorName(code, ctypes.byref(name))
    return CudaDriver(code, (name.value or b"").decode(errors="replace"), count.value, cuda_version(number.value))


def ask_cuda_apart() -> CudaDriver | None:
    """As ask_cuda, in a process of its own; None where that process does not answer."""
    command = [sys.executable, "-m", "core.gpu.cuda_driver"]
    try:
        asked = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=ASK_S, check=True)
        return CudaDriver(**json.loads(asked.stdout))
    except (subprocess.SubprocessError, OSError, ValueError, TypeError):
        return None


def cuda_version(number: int | None) -> str | None:
    """CUDA's 12040 as "12.4"."""
    return "{}.{}".format(*split_version(number)) if number else None


if __name__ == "__main__":
    print(json.dumps(asdict(ask_cuda())))
