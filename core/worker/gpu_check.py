"""Whether this process's torch can use the machine's GPUs: asked before a load, and where a load finds no CUDA."""

from __future__ import annotations

import torch

from core.common.errors import GpuUseError
from core.engine.protocol import ImportsDone
from core.gpu.cuda_driver import ask_cuda, ask_cuda_apart
from core.gpu.snapshot import GpuSnapshot, read_snapshot
from core.gpu.torch_support import InstalledTorch, find_gpu_error, names_of


def known_torch() -> InstalledTorch:
    """The imported torch: its version, CUDA version and architectures. The GPU is not touched."""
    told = getattr(torch._C, "_cuda_getArchFlags", lambda: None)()
    return InstalledTorch(torch.__version__, torch.version.cuda, tuple(told.split()) if told else None)


def look() -> ImportsDone:
    """What a load in this process would find, without starting CUDA here."""
    snapshot, known = read_snapshot(), known_torch()
    is_asked = bool(snapshot.gpus) and known.cuda is not None
    return ImportsDone(known, find_gpu_error(snapshot, known, ask_cuda_apart() if is_asked else None))


def require_no_gpu(snapshot: GpuSnapshot) -> None:
    """Raise GpuUseError where NVML shows a GPU, for a torch that shows none."""
    known = known_torch()
    if error := find_gpu_error(snapshot, known, ask_cuda() if known.cuda else None):
        raise error
    if snapshot.gpus:
        raise GpuUseError("gpu_unseen", gpus=names_of(snapshot.gpus), version=known.version, why=_why())


def _why() -> str:
    """torch's own reason why CUDA does not start, one line; "-" where it does."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().splitlines()[0][:200]
    return "-"
