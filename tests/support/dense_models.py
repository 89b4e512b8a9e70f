"""Checkpoints as models whose matrices are written out: for tests on a CPU that are not about kernels of matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from core.checkpoint.checkpoint import read_checkpoint
from core.memory.kernels.registry import kernel_named
from core.memory.model_shape import read_shape
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model

ON_CPU = DeviceMap((torch.device("cpu"),))
CHUNK_TOKENS = 64


def load_dense(
    folder: Path, dtype: torch.dtype = torch.float16, merged: bool = False, device_map: DeviceMap = ON_CPU
) -> Any:
    """The model in `folder`; `merged`: with matrices that share their input as one."""
    checkpoint = read_checkpoint(folder)
    shape, dense = read_shape(checkpoint, merged), kernel_named("dense")
    return load_model(checkpoint, shape, dense, device_map, dtype, CHUNK_TOKENS, lambda _: None)
