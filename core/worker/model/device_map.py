"""A model shared out by layers over several GPUs: where each tensor lies, and what brings a pass from one to the next.

A plain pass copies what each layer is called with to where that layer lies. One that is to be captured has a way of its
own (core/worker/decode/split_pass.py), which its cache names.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

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
        return self.devices[self.place_of(name, embedding)]

    def place_of(self, name: str, embedding: str) -> int:
        """Which of `devices` has a tensor called `name`."""
        if name.startswith(f"{embedding}."):
            return 0
        layer = LAYER.match(name)
        return len(self.devices) - 1 if layer is None else self.place_of_layer(int(layer[1]))

    def of_layer(self, index: int) -> torch.device:
        return self.devices[self.place_of_layer(index)]

    def place_of_layer(self, index: int) -> int:
        """Which of `devices` has the layer."""
        if not self.is_split:
            return 0
        ends = itertools.accumulate(self.num_layers)
        return next((place for place, end in enumerate(ends) if index < end), len(self.devices) - 1)


class Crossing(Protocol):
    """How a pass goes over from one device to the next, as `crossing` of the cache that layers are called with."""

    def arrive(
        self, place: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a layer on device number `place` is to be called with in the place of these."""


def embedding_name(model: PreTrainedModel) -> str:
    inside = model.get_input_embeddings()
    return next(str(name) for name, module in model.named_modules() if module is inside)


def add_device_hooks(model: PreTrainedModel, device_map: DeviceMap) -> None:
    """Have every part of the model called with what it needs on its own device. To be called again once modules were
    replaced."""
    if not device_map.is_split:
        return
    embedding = embedding_name(model)
    for name, module in model.named_modules():
        # A layer as a whole, and whatever holds weights outside of the layers.
        layer = LAYER.fullmatch(f"{name}.")
        has_weights = next(module.parameters(recurse=False), None) is not None and LAYER.match(name) is None
        if (layer is None and not has_weights) or is_hooked(module):
            continue
        place = None if layer is None else device_map.place_of_layer(int(layer[1]))
        hook = _MoveInputs(device_map.of(f"{name}.", embedding), place)
        module.register_forward_pre_hook(hook, with_kwargs=True)
    if not any(isinstance(hook, _ReturnTo) for hook in model._forward_hooks.values()):
        model.register_forward_hook(_ReturnTo(device_map.first))


def is_hooked(module: nn.Module) -> bool:
    return any(isinstance(hook, _MoveInputs) for hook in module._forward_pre_hooks.values())


def map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`value` with every tensor in its tuples, lists and dicts changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(one, change) for one in value)
    if type(value) is dict:
        return {name: map_tensors(one, change) for name, one in value.items()}
    return value


def use_device(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)


class _ReturnTo:
    """Makes the first device the current one after a pass."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, *_: object) -> None:
        use_device(self._device)


class _MoveInputs:
    """Moves what a module is called with to its device, and makes that device the one that kernels run on. place: that
    of a layer's device."""

    def __init__(self, device: torch.device, place: int | None) -> None:
        self._device, self._place = device, place

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        crossing: Crossing | None = getattr(kwargs.get("past_key_values"), "crossing", None)
        if crossing is not None and self._place is not None:
            return crossing.arrive(self._place, args, kwargs)
        use_device(self._device)

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(self._device, non_blocking=True)

        return map_tensors(args, move), map_tensors(kwargs, move)
