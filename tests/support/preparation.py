"""Stands in for a load's step that compiles and checks a kernel."""

from __future__ import annotations

from core.checkpoint.checkpoint import Checkpoint
from core.common.errors import EngineError
from core.memory.kernels.spec import Device, KernelSpec
from core.worker.model.device_map import DeviceMap


class Preparation:
    """Stands in for compiling and checking; refuses the kernels named."""

    def __init__(self, *refused: str) -> None:
        self._refused, self.asked = refused, list[str]()

    def __call__(self, kernel: KernelSpec, checkpoint: Checkpoint, device: Device, places: DeviceMap) -> None:
        self.asked.append(kernel.name)
        if kernel.name in self._refused:
            raise EngineError("kernel_wrong", kernel=kernel.name, difference=1.0)
