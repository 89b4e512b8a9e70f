"""A captured pass over several GPUs: a graph a GPU, and between two of them one copy.

The GPU of the first layers has the tokens' embedding, that of the last the head and the draws. Each reads slots and
positions from its own memory. What a layer is called with beside them, such as RoPE's angles, goes along with the
hidden states. Sampled tokens return by a small copy (SlotMirrors), so the host need not know them before the next step.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from core.worker.decode.device_link import DeviceLink
from core.worker.decode.graph_recorder import GraphRecorder
from core.worker.model.device_map import DeviceMap, map_tensors


class SplitPass:
    """Brings passes over `device_map` from one GPU to the next. Raises NotImplementedError for what it cannot split."""

    def __init__(self, device_map: DeviceMap, through_host: bool | None = None) -> None:
        if 0 in device_map.num_layers:
            raise NotImplementedError("a GPU without layers")
        self.devices = device_map.devices
        self._links = [DeviceLink(one, other, through_host) for one, other in itertools.pairwise(self.devices)]
        self._recording: SegmentRecording | None = None
        self._place = 0
        self._enter: Callable[[int], object] = lambda _: None
        # What the layers so far were called with beside their input, and the copies of it, by the first one's identity.
        self._shared: dict[int, torch.Tensor] = {}
        self._copies: dict[int, torch.Tensor] = {}

    @contextmanager
    def running(self, enter: Callable[[int], object]) -> Iterator[None]:
        """Inside the `with` block a pass runs from the first GPU to the last; `enter` hears the number of each other
        one, once the pass has come to it."""
        self._place, self._enter = 0, enter
        try:
            yield
            if self._place != len(self.devices) - 1:
                raise NotImplementedError("a pass that does not come to the last GPU")
        finally:
            self._shared, self._copies = {}, {}

    @contextmanager
    def recorded(self, recording: SegmentRecording) -> Iterator[None]:
        """Inside the `with` block passes are recorded."""
        self._recording = recording
        try:
            yield
        finally:
            self._recording = None

    def arrive(
        self, place: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a layer on GPU number `place` is called with, on that GPU; the first one there brings the pass over."""
        beside = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        for tensor in tensors_in(beside):
            self._shared.setdefault(id(tensor), tensor)
        while self._place < place:
            self._cross([*tensors_in(args), *tensors_in(kwargs.get("hidden_states"))])
        if self._place > place:
            raise NotImplementedError("a layer on an earlier GPU than the one before it")
        moved = map_tensors(args, self._here), map_tensors(kwargs, self._here)
        device = self.devices[place]
        if any(tensor.is_cuda and tensor.device != device for tensor in tensors_in(moved)):
            raise NotImplementedError("a layer that needs what no layer before it did")
        return moved

    def _here(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._copies.get(id(tensor), tensor)

    def _cross(self, inputs: list[torch.Tensor]) -> None:
        device, link = self.devices[self._place], self._links[self._place]
        beside = [tensor for tensor in self._shared.values() if self._here(tensor).device == device]
        crossing = {id(tensor): tensor for tensor in (*inputs, *beside)}
        here = [self._here(tensor) for tensor in crossing.values()]
        num_bytes = link.pack(here, is_fixed=self._recording is not None)
        self._place += 1
        if self._recording is None:
            link.copy(num_bytes)
        else:
            self._recording.cut(lambda: link.copy(num_bytes), self.devices[self._place])
        self._enter(self._place)
        # Kept until the pass ends, so that no other tensor gets one's identity.
        self._shared |= {key: tensor for key, tensor in crossing.items() if key not in self._shared}
        self._copies |= dict(zip(crossing, link.unpack(here), strict=True))


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors in the tuples, lists and dicts of `value`."""
    found: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    map_tensors(value, note)
    return found


class SegmentRecording:
    """Graphs of one pass in the making, one a GPU, and what happens between them. To be replayed in that order."""

    def __init__(self, pools: dict[torch.device, Any]) -> None:
        self._pools = pools
        self._actions: list[Callable[[], object]] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._device = next(iter(pools))

    def begin(self, device: torch.device) -> None:
        """Record what is enqueued into the current stream of `device` from now on."""
        self._device, graph = device, torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            graph.capture_begin(pool=self._pools[device])
        self._graph = graph

    def end(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            with torch.cuda.device(self._device):
                graph.capture_end()
            self._actions.append(graph.replay)

    def cut(self, between: Callable[[], object], device: torch.device) -> None:
        """End one graph and begin the next on `device`; `between` is done between both whenever they are replayed."""
        self.end()
        self._actions.append(between)
        self.begin(device)

    def replay(self) -> None:
        for action in self._actions:
            action()


class SplitRecorder(GraphRecorder):
    """Records passes of `split` as a graph a GPU."""

    def __init__(self, split: SplitPass) -> None:
        self._split = split

    def new_pool(self) -> dict[torch.device, Any]:
        for device in self._split.devices:
            torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        return {device: torch.cuda.graph_pool_handle() for device in self._split.devices}

    def record(self, compute: Callable[[], torch.Tensor], pool: Any) -> tuple[Callable[[], None], torch.Tensor]:
        # No tensor is to be freed by chance while CUDA records.
        gc.collect()
        for device in self._split.devices:
            torch.cuda.synchronize(device)
        recording = SegmentRecording(pool)
        with self._split.recorded(recording):
            recording.begin(self._split.devices[0])
            try:
                result = compute()
            finally:
                recording.end()
        return recording.replay, result
