"""Shared memory that a kernel is launched with, beside what it declares itself."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch

from core.worker.kernels import nvrtc
from core.worker.kernels.nvrtc import PLAIN_SHARED_BYTES, CudaModule


class Driver:
    """As much of CUDA's driver as is asked here: a kernel that declares `own_bytes` of shared memory."""

    def __init__(self, own_bytes: int) -> None:
        self._own_bytes = own_bytes
        self.allowed: list[int] = []

    def cuModuleGetFunction(self, *_: object) -> int:
        return 0

    def cuFuncGetAttribute(self, found: Any, *_: object) -> int:
        found._obj.value = self._own_bytes
        return 0

    def cuFuncSetAttribute(self, function: object, attribute: int, value: int) -> int:
        self.allowed.append(value)
        return 0


@pytest.mark.parametrize(
    ("own_bytes", "shared_bytes", "is_asked_for"),
    [(0, PLAIN_SHARED_BYTES, False), (800, PLAIN_SHARED_BYTES, True), (800, 1024, False), (0, 65536, True)],
)
def test_more_shared_memory_than_every_block_has_is_asked_for(
    own_bytes: int, shared_bytes: int, is_asked_for: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product of one row with groups of 64 took exactly 48 KiB. With adapters it declares 800 bytes more, and could
    not be launched."""
    driver = Driver(own_bytes)
    monkeypatch.setattr(nvrtc, "library", lambda: driver)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    module = CudaModule.__new__(CudaModule)
    module._handle, module._device = ctypes.c_void_p(), torch.device("cuda", 0)
    module.kernel("none_narrow", shared_bytes)
    assert driver.allowed == ([shared_bytes] if is_asked_for else [])
