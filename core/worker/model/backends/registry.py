"""The backend of every kernel in KERNELS."""

from __future__ import annotations

from collections.abc import Callable

import torch

from core.memory.kernels.cpu import ATEN_INT4, DENSE
from core.memory.kernels.gptqmodel import TORCH, TRITON
from core.memory.kernels.llamadeck import LLAMADECK
from core.memory.kernels.spec import KernelSpec
from core.worker.model.backends.aten_int4 import AtenInt4Backend
from core.worker.model.backends.base import KernelBackend
from core.worker.model.backends.dense import DenseBackend
from core.worker.model.backends.gptqmodel import TorchBackend, TritonBackend
from core.worker.model.backends.llamadeck import LlamadeckBackend

BACKENDS: dict[str, Callable[[KernelSpec, torch.dtype, torch.device], KernelBackend]] = {
    LLAMADECK.name: LlamadeckBackend,
    TRITON.name: TritonBackend,
    TORCH.name: TorchBackend,
    ATEN_INT4.name: AtenInt4Backend,
    DENSE.name: DenseBackend,
}


def make_backend(spec: KernelSpec, dtype: torch.dtype, device: torch.device) -> KernelBackend:
    return BACKENDS[spec.name](spec, dtype, device)
