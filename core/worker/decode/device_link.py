"""Brings tensors from the memory of one GPU into that of another, in the order of both GPUs' streams.

GPUs that can read each other's memory copy directly. Others copy through the host's memory, as those do whose direct
copies arrive damaged, which some mainboards are known for.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch

log = logging.getLogger(__name__)
# Kernels read rows in pieces of 16 bytes.
ALIGNMENT = 16
PROBE_BYTES = 1 << 20


def needs_host(source: torch.device, target: torch.device) -> bool:
    """Whether copies from `source` to `target` must go through the host's memory."""
    if source == target or source.type != "cuda":
        return False
    if not torch.cuda.can_device_access_peer(target, source):
        log.info("%s and %s cannot read each other's memory: copies go through the host's", source, target)
        return True
    probe = (torch.arange(PROBE_BYTES, device=source) * 7 % 251).to(torch.uint8)
    if torch.equal(probe.to(target).cpu(), probe.cpu()):
        return False
    log.warning("what is copied from %s to %s arrives damaged: copies go through the host's memory", source, target)
    return True


class DeviceLink:
    """From `source` to `target`. What is packed lies at fixed addresses, so graphs may write and read it."""

    def __init__(self, source: torch.device, target: torch.device, through_host: bool | None = None) -> None:
        self._source, self._target = source, target
        self.through_host = needs_host(source, target) if through_host is None else through_host
        self._padding = torch.zeros(ALIGNMENT, dtype=torch.uint8, device=source)
        self._packed = self._arrived = self._pinned = torch.empty(0, dtype=torch.uint8)
        self._has_arrived: torch.cuda.Event | None = None

    def pack(self, tensors: Sequence[torch.Tensor], is_fixed: bool = False) -> int:
        """Put `tensors` side by side on the source; how many bytes they are. Raises RuntimeError where they need more
        room than there is and `is_fixed`."""
        pieces = []
        for tensor in tensors:
            piece = tensor.contiguous().flatten().view(torch.uint8)
            pieces += [piece, self._padding[: -piece.numel() % ALIGNMENT]]
        num_bytes: int = sum(piece.numel() for piece in pieces)
        if num_bytes > self._packed.numel():
            if is_fixed:
                raise RuntimeError(f"{num_bytes} bytes for another GPU, room for {self._packed.numel()}")
            self._reserve(num_bytes)
        torch.cat(pieces, out=self._packed[:num_bytes])
        return num_bytes

    def _reserve(self, num_bytes: int) -> None:
        self._packed = torch.empty(num_bytes, dtype=torch.uint8, device=self._source)
        self._arrived = torch.empty(num_bytes, dtype=torch.uint8, device=self._target)
        if self.through_host:
            self._pinned = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def copy(self, num_bytes: int) -> None:
        """Enqueue the copy of the first `num_bytes`, after what the target's stream still does with those before."""
        packed, arrived = self._packed[:num_bytes], self._arrived[:num_bytes]
        if not self.through_host:
            # Between GPUs torch lets each of both streams wait for the other.
            arrived.copy_(packed, non_blocking=True)
            return
        source, target = torch.cuda.current_stream(self._source), torch.cuda.current_stream(self._target)
        if self._has_arrived is not None:
            source.wait_event(self._has_arrived)
        self._pinned[:num_bytes].copy_(packed, non_blocking=True)
        target.wait_event(source.record_event())
        arrived.copy_(self._pinned[:num_bytes], non_blocking=True)
        self._has_arrived = target.record_event()

    def unpack(self, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What `pack` was given last, as it lies on the target after the copy. like: the same shapes and types."""
        found, begin = [], 0
        for one in like:
            num_bytes = math.prod(one.shape) * one.element_size()
            found.append(self._arrived[begin : begin + num_bytes].view(one.dtype).view(one.shape))
            begin += num_bytes + -num_bytes % ALIGNMENT
        return found


class SlotMirrors:
    """Copies of a tensor whose columns are slots on the GPUs of earlier layers, which read them in the next step.

    A copy is enqueued behind what wrote the tensor. Only a step of the same slots waits for it, so that a GPU can begin
    with other slots meanwhile.
    """

    def __init__(self, own: torch.Tensor, devices: Sequence[torch.device]) -> None:
        """own [.., slots]: the tensor, on the GPU of the last layers."""
        self._own = own
        self.copies = [torch.zeros_like(own, device=device) for device in devices]
        self._through_host = [needs_host(own.device, device) for device in devices]
        self._streams = [torch.cuda.Stream(device) for device in devices if device.type == "cuda"]
        self._events: list[list[torch.cuda.Event]] = [[] for _ in range(own.shape[-1])]

    def send(self, slots: Sequence[int]) -> None:
        """Enqueue the copies, for the sake of `slots`. All columns are copied: the others are what they were."""
        if not self._streams:
            for copy in self.copies:
                copy.copy_(self._own)
            return
        written = torch.cuda.current_stream(self._own.device)
        events = []
        for copy, stream, through_host in zip(self.copies, self._streams, self._through_host, strict=True):
            sent = self._own
            if through_host:
                sent = torch.empty(sent.shape, dtype=sent.dtype, pin_memory=True)
                sent.copy_(self._own, non_blocking=True)
            stream.wait_event(written.record_event())
            with torch.cuda.stream(stream):
                copy.copy_(sent, non_blocking=True)
            events.append(stream.record_event())
        for slot in slots:
            self._events[slot] = events

    def wait(self, slots: Sequence[int]) -> None:
        """Let the streams of the earlier GPUs wait for the copies that were sent for `slots`."""
        events = {id(one): one for slot in slots for one in self._events[slot]}
        for event in events.values():
            torch.cuda.current_stream(event.device).wait_event(event)
