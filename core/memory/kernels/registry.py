"""All matrix kernels, by speed, and the choice among them by rule, said with its reason.

What each kernel of another project takes is gptqmodel 7.6's own list. A choice is never left to that library: its
automatic one picks a kernel on compute capability 9.0 that downloads sources while a model loads.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from core.checkpoint.checkpoint import Checkpoint
from core.common.errors import EngineError
from core.memory.kernels.cpu import ATEN_INT4, DENSE
from core.memory.kernels.gptqmodel import TORCH, TRITON
from core.memory.kernels.llamadeck import LLAMADECK
from core.memory.kernels.spec import Device, KernelSpec
from core.memory.model_shape import MatrixShape, matrix_shapes

# Fastest first.
KERNELS: tuple[KernelSpec, ...] = (LLAMADECK, TRITON, TORCH, ATEN_INT4, DENSE)
C_COMPILERS = ("gcc", "clang")


def has_c_compiler() -> bool:
    """Whether Triton can build what launches its kernels: it looks for these compilers, and needs Python's headers."""
    compilers = [os.environ["CC"]] if "CC" in os.environ else C_COMPILERS
    has_headers = Path(sysconfig.get_path("include", "posix_prefix"), "Python.h").exists()
    return has_headers and any(shutil.which(name) for name in compilers)


def kernel_named(name: str) -> KernelSpec:
    return next(kernel for kernel in KERNELS if kernel.name == name)


def able_kernels(matrices: Collection[MatrixShape], devices: Collection[Device]) -> list[KernelSpec]:
    """The kernels that run a model of `matrices` on every one of `devices`, fastest first."""
    return [kernel for kernel in KERNELS if all(kernel.can_run_all(matrices, device) for device in devices)]


def choose_kernel(checkpoint: Checkpoint, device: Device, forced: str | None = None) -> tuple[KernelSpec, str]:
    """The kernel to run `checkpoint` with, and the key of the sentence that says why (section "kernel").

    Raises EngineError where none takes it, or where the `forced` one does not.
    """
    matrices = matrix_shapes(checkpoint)
    able = able_kernels(matrices, [device])
    if forced is not None:
        chosen = next((kernel for kernel in able if kernel.name == forced), None)
        if chosen is None:
            names = ", ".join(kernel.name for kernel in able) or "-"
            raise EngineError("kernel_refused", kernel=forced, model=checkpoint.name, able=names)
        return chosen, "asked_for"
    if not able:
        raise EngineError("no_kernel", model=checkpoint.name, quantization=checkpoint.quantization_label)
    return fastest_kernel(matrices, device)


def fastest_kernel(matrices: Collection[MatrixShape], device: Device) -> tuple[KernelSpec, str]:
    """The first of KERNELS that takes all of `matrices`, which one must, and why no faster one."""
    kernel = able_kernels(matrices, [device])[0]
    with_compiler = able_kernels(matrices, [replace(device, has_c_compiler=True)])[0]
    return kernel, kernel.name if with_compiler == kernel else "no_c_compiler"
