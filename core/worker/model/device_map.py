"""A model shared out by layers over several GPUs: where each tensor lies, and what brings a pass from one to the next.

Passes over several GPUs are plain ones, not captured.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from core.checkpoint.layers import LAYER
from core.memory.load_plan import LoadPlan


@dataclass(frozen=True, slots=True)
class DeviceMap:
    """The devices of a model, in the order of its layers, and how many layers each has. One device has everything."""

    devices: tuple[torch.device, ...]
    num_layers: tuple[int, ...] = ()

    @classmethod
    def of_plan(cls, plan: LoadPlan) -> DeviceMap:
        """The devices of `plan`, whose indexes are CUDA's own."""
        if plan.device_kind == "cpu":
            return cls((torch.device("cpu"),))
        devices = tuple(torch.device("cuda", device.index) for device in plan.devices)
        return cls(devices, tuple(memory.num_layers for memory in plan.memory))

    @property
    def first(self) -> torch.device:
        return self.devices[0]

    @property
    def last(self) -> torch.device:
        return self.devices[-1]

    @property
    def is_split(self) -> bool:
        return len(self.devices) > 1

    def of(self, name: str, embedding: str) -> torch.device:
        """Where a tensor called `name` lies; `embedding` is the name of the module that tokens go into first."""
        if name.startswith(f"{embedding}."):
            return self.first
        layer = LAYER.match(name)
        return self.last if layer is None else self.of_layer(int(layer[1]))

    def of_layer(self, index: int) -> torch.device:
        if not self.is_split:
            return self.first
        ends = itertools.accumulate(self.num_layers)
        return next((device for device, end in zip(self.devices, ends, strict=True) if index < end), self.last)


def embedding_name(model: PreTrainedModel) -> str:
    inside = model.get_input_embeddings()
    return next(str(name) for name, module in model.named_modules() if module is inside)


def add_device_hooks(model: PreTrainedModel, device_map: DeviceMap) -> None:
    """Have every part of the model called with what it needs on its own device."""
    if not device_map.is_split:
        return
    embedding = embedding_name(model)
    for name, module in model.named_modules():
        # A layer as a whole, and whatever holds weights outside of the layers.
        layer = LAYER.fullmatch(f"{name}.")
        has_weights = next(module.parameters(recurse=False), None) is not None and LAYER.match(name) is None
        if layer is not None or has_weights:
            module.register_forward_pre_hook(_MoveInputs(device_map.of(f"{name}.", embedding)), with_kwargs=True)
    model.register_forward_hook(lambda *_: torch.cuda.set_device(device_map.first))


class _MoveInputs:
    """Moves what a module is called with to its device, and makes that device the one that kernels run on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # A head that is tied to the embedding is where that is.
        own = next(module.parameters(recurse=False), None)
        device = self._device if own is None else own.device
        torch.cuda.set_device(device)
        return self._moved(args, device), self._moved(kwargs, device)

    def _moved(self, value: Any, device: torch.device) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, (tuple, list)):
            return type(value)(self._moved(one, device) for one in value)
        if type(value) is dict:
            return {name: self._moved(one, device) for name, one in value.items()}
        return value
