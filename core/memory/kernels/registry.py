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
from core.memory.kernels.exllama_v2 import EXLLAMA_V2
from core.memory.kernels.gptqmodel import TORCH, TRITON
from core.memory.kernels.llamadeck import LLAMADECK
from core.memory.kernels.marlin import MARLIN
from core.memory.kernels.spec import ALL_BITS, Device, KernelSpec
from core.memory.model_shape import MatrixShape, matrix_shapes

# Fastest first: each kernel at its place, and the bits for which that is its place.
BY_SPEED: tuple[tuple[KernelSpec, frozenset[int]], ...] = (
    (LLAMADECK, frozenset((4,))),
    (EXLLAMA_V2, ALL_BITS),
    (MARLIN, ALL_BITS),
    # Not measured yet. Where our own kernel turns out to be faster with 8 bit, this line moves up to before ExLlamaV2.
    (LLAMADECK, frozenset((8,))),
    (TRITON, ALL_BITS),
    (TORCH, ALL_BITS),
    (ATEN_INT4, ALL_BITS),
    (DENSE, ALL_BITS),
)
KERNELS: tuple[KernelSpec, ...] = tuple(dict.fromkeys(kernel for kernel, _ in BY_SPEED))
# What compiling a kernel takes: CUDA's compiler, a C++ one, and what runs them.
COMPILERS = ("nvcc", "c++", "ninja")


def has_compiler() -> bool:
    """Whether this machine can compile a CUDA kernel that Python calls."""
    return has_python_headers() and all(shutil.which(name) for name in COMPILERS)


def has_c_compiler() -> bool:
    """Whether Triton can build what launches its kernels; it looks for these compilers."""
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    return has_python_headers() and any(shutil.which(name) for name in compilers)


def has_python_headers() -> bool:
    return Path(sysconfig.get_path("include", "posix_prefix"), "Python.h").exists()


def kernel_named(name: str) -> KernelSpec:
    return next(kernel for kernel in KERNELS if kernel.name == name)


def able_kernels(matrices: Collection[MatrixShape], devices: Collection[Device]) -> list[KernelSpec]:
    """The kernels that run a model of `matrices` on every one of `devices`, fastest first."""
    bits = {matrix.format.bits for matrix in matrices}
    ordered = dict.fromkeys(kernel for kernel, of_bits in BY_SPEED if bits & of_bits)
    return [kernel for kernel in ordered if all(kernel.can_run_all(matrices, device) for device in devices)]


def speed_rank(kernel: KernelSpec, bits: int) -> int:
    """The place of `kernel` with `bits` by speed; 0 is the fastest."""
    return next(place for place, (one, of_bits) in enumerate(BY_SPEED) if one == kernel and bits in of_bits)


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
    for reason, better in (
        ("no_c_compiler", replace(device, has_c_compiler=True)),
        ("no_compiler", replace(device, has_compiler=True)),
    ):
        if able_kernels(matrices, [better])[0] != kernel:
            return kernel, reason
    return kernel, kernel.name
