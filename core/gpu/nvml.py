"""NVIDIA's management library through nvidia-ml-py: starting it, asking it, what its failures mean."""

from __future__ import annotations

import atexit
import importlib
import threading
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any

from core.common.errors import DeckError

UNNAMED = "NVIDIA GPU"

# NVML's return codes (nvml.h), by number: a wrong `pynvml` module lacks some of their names.
INSUFFICIENT_POWER = 8
DRIVER_NOT_LOADED = 9
NO_PERMISSION = 4
TIMEOUT = 10
LIBRARY_NOT_FOUND = 12
GPU_IS_LOST = 15
RESET_REQUIRED = 16
LIB_RM_VERSION_MISMATCH = 18

START_ERRORS = {
    NO_PERMISSION: "gpu_no_permission",
    DRIVER_NOT_LOADED: "gpu_driver_not_loaded",
    LIBRARY_NOT_FOUND: "gpu_no_driver",
    LIB_RM_VERSION_MISMATCH: "gpu_version_mismatch",
}
DEVICE_ERRORS = {
    NO_PERMISSION: "gpu_device_no_permission",
    INSUFFICIENT_POWER: "gpu_no_power",
    GPU_IS_LOST: "gpu_lost",
    RESET_REQUIRED: "gpu_reset_required",
}
# After one of these codes a GPU answers no other question. Every other code only means "no such reading".
BROKEN = frozenset({INSUFFICIENT_POWER, TIMEOUT, GPU_IS_LOST, RESET_REQUIRED})
# What the `pynvml` module of other packages lacks: the second version of the memory call.
EXPECTED_NAMES = ("NVMLError", "nvmlInit", "nvmlMemory_v2", "nvmlDeviceGetComputeRunningProcesses")


class Nvml:
    """NVML in this process: started at the first question, shut down at exit, thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started: ModuleType | None = None
        self.names: dict[int, str | None] = {}  # By index, to name a GPU that no longer answers.

    def started(self) -> ModuleType:
        """`pynvml` with NVML started. Raises DeckError where that fails; the next call tries anew."""
        with self._lock:
            if self._started is None:
                self._started = _start(_import_pynvml())
                atexit.register(_shut_down, self._started)
            return self._started

    def forget(self) -> None:
        """Start anew at the next question, as after a reload of the driver."""
        with self._lock:
            if self._started is not None:
                atexit.unregister(_shut_down)
                _shut_down(self._started)
                self._started = None


def ask(pynvml: ModuleType, function: str, *arguments: object) -> Any:
    """One reading, or None where this GPU or driver has none. Raises NVMLError where the GPU is broken."""
    call: Callable[..., Any] = getattr(pynvml, function)
    try:
        return call(*arguments)
    except pynvml.NVMLError as error:
        if error.value in BROKEN:
            raise
        return None
    except UnicodeDecodeError:
        return None  # Some drivers answer with stray bytes instead of a name.


def start_error(code: int, reason: str) -> DeckError:
    """Why NVML could not be started, as a sentence with what to do."""
    key = START_ERRORS.get(code)
    return DeckError(key) if key else DeckError("gpu_driver_failed", code=code, reason=reason)


def device_error(code: int, reason: str, index: int, name: str | None) -> DeckError:
    """Why GPU `index` cannot be read, as a sentence with what to do."""
    key = DEVICE_ERRORS.get(code)
    if key:
        return DeckError(key, index=index, name=name or UNNAMED)
    return DeckError("gpu_unreadable", index=index, name=name or UNNAMED, code=code, reason=reason)


def _import_pynvml() -> ModuleType:
    try:
        pynvml = importlib.import_module("pynvml")
    except ImportError as error:
        raise DeckError("gpu_package_missing") from error
    if not all(hasattr(pynvml, name) for name in EXPECTED_NAMES):
        raise DeckError("gpu_package_wrong", path=str(getattr(pynvml, "__file__", None) or "pynvml"))
    return pynvml


def _start(pynvml: ModuleType) -> ModuleType:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise start_error(error.value, str(error)) from error
    return pynvml


def _shut_down(pynvml: ModuleType) -> None:
    with suppress(pynvml.NVMLError):
        pynvml.nvmlShutdown()
