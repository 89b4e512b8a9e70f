"""What a load does, decided before a weight is read; the worker executes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.text_config import text_config
from core.memory.kernels.spec import Device, Dtype, KernelSpec
from core.memory.model_shape import ModelShape
from core.memory.plan import MemoryPlan


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """One device of a load. `index`: its place among the devices that were given. `memory`: None on a CPU."""

    index: int
    memory: MemoryPlan | None = None


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """`kernel_reason` is a key of the locales' section "kernel". `devices` are in the order of the layers.

    `is_captured`: steps are captured in CUDA graphs, which is much faster and takes some memory more. `is_forced`: the
    load goes on although it does not fit.
    """

    kernel: KernelSpec
    kernel_reason: str
    dtype: Dtype
    device_kind: Literal["cuda", "cpu"]
    devices: tuple[DevicePlan, ...]
    shape: ModelShape
    is_captured: bool
    context_tokens: int
    num_slots: int
    chunk_tokens: int
    is_forced: bool = False

    @property
    def memory(self) -> tuple[MemoryPlan, ...]:
        """One plan a GPU; none on a CPU."""
        return tuple(device.memory for device in self.devices if device.memory is not None)


def choose_dtype(checkpoint: Checkpoint, kernel: KernelSpec, device: Device) -> Dtype:
    """What the kernel computes in, as near to what the model was made in as it can."""
    whole, text = checkpoint.config, text_config(checkpoint.config)
    named = whole.get("dtype") or whole.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")
    return kernel.dtype(str(named), device)
