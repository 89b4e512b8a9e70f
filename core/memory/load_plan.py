"""What a load does, decided before a weight is read; the worker executes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.text_config import text_config
from core.memory.cache_choice import EVERY_CHAT_FULL, CacheChoice
from core.memory.kernels.spec import Device, Dtype, KernelSpec
from core.memory.model_shape import ModelShape
from core.memory.pages import PAGE_TOKENS, full_pages
from core.memory.plan import MemoryPlan
from core.memory.step_sizes import StepSizes


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
    sizes: StepSizes
    is_forced: bool = False
    cache: CacheChoice = EVERY_CHAT_FULL

    @property
    def num_pages(self) -> int | None:
        """How many pages the KV cache has; None where each slot has a row of its own, for plain steps."""
        is_plain = len(self.devices) > 1 and not self.is_captured
        if self.device_kind == "cpu" or is_plain or not self.shape.is_capturable:
            return None
        return self.cache.num_pages(self.num_slots, self.context_tokens)

    @property
    def pool_tokens(self) -> int | None:
        """How many tokens all chats have together; None where every chat can be full."""
        pages = self.num_pages
        is_full = pages is None or pages >= full_pages(self.num_slots, self.context_tokens)
        return None if pages is None or is_full else pages * PAGE_TOKENS

    @property
    def memory(self) -> tuple[MemoryPlan, ...]:
        """One plan a GPU; none on a CPU."""
        return tuple(device.memory for device in self.devices if device.memory is not None)


def choose_dtype(checkpoint: Checkpoint, kernel: KernelSpec, device: Device) -> Dtype:
    """What the kernel computes in, as near to what the model was made in as it can."""
    whole, text = checkpoint.config, text_config(checkpoint.config)
    named = whole.get("dtype") or whole.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")
    return kernel.dtype(str(named), device)
