"""Which matrix kernel runs a checkpoint, chosen by rule and said with its reason; knows no torch, loads nothing.

"deck" is the engine's own (core/worker/kernels/w4_small_batch.py); what each other kernel takes is gptqmodel 7.6's own
list. A choice is never left to that library: its automatic one picks a kernel on compute capability 9.0 that downloads
sources while a model loads.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from typing import Literal

from core.checkpoint.checkpoint import Checkpoint
from core.common.errors import EngineError


@dataclass(frozen=True, slots=True)
class Device:
    """Where a model is to run. `capability` is CUDA's compute capability; `has_compiler` means nvcc and a C++ one.

    `has_code`: whether torch was built for it.
    """

    kind: Literal["cuda", "cpu"]
    capability: tuple[int, int] = (0, 0)
    has_compiler: bool = False
    has_code: bool = True


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a kernel can run. `multiple` divides both sides of every matrix, `either_multiple` at least one.

    `takes_part_groups`: whether a matrix's last group may be shorter than the others.
    """

    name: str
    device: Literal["cuda", "cpu"]
    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]
    takes_act_order: bool = True
    takes_asymmetric: bool = True
    needs_compiler: bool = False
    min_capability: tuple[int, int] = (0, 0)
    multiple: int = 1
    either_multiple: int = 1
    takes_part_groups: bool = False


# What compiling a kernel takes: CUDA's compiler, a C++ one, and what runs them.
COMPILERS = ("nvcc", "c++", "ninja")
ALL_GROUPS = (-1, 16, 32, 64, 128, 256, 512, 1024)
# Fastest first. The engine's own needs the tensor cores of compute capability 8.0 and takes 4 bit; Marlin is the only
# one here that decodes 8 bit without writing the matrix out.
KERNELS = (
    Kernel("deck", "cuda", (4,), (-1, 32, 64, 128), min_capability=(8, 0), multiple=64),
    Kernel("exllama_v2", "cuda", (4,), (-1, 32, 64, 128), needs_compiler=True, min_capability=(6, 0),
           multiple=32),
    Kernel("marlin", "cuda", (4, 8), (-1, 32, 64, 128), takes_asymmetric=False, needs_compiler=True,
           min_capability=(7, 5), multiple=64, either_multiple=128),
    Kernel("triton", "cuda", (2, 4, 8), ALL_GROUPS, min_capability=(7, 0), multiple=32, takes_part_groups=True),
    Kernel("torch", "cuda", (2, 3, 4, 8), ALL_GROUPS, takes_part_groups=True),
    Kernel("aten_int4", "cpu", (4,), (32, 64, 128), multiple=16),
    Kernel("dense", "cpu", (2, 3, 4, 8), ALL_GROUPS, takes_part_groups=True),
)  # fmt: skip


def has_compiler() -> bool:
    """Whether this machine can compile a CUDA kernel."""
    return all(shutil.which(name) for name in COMPILERS)


def matrix_shapes(checkpoint: Checkpoint) -> set[tuple[int, int]]:
    """The (in, out) features of every quantized matrix, from the packed shapes: qweight is [in * bits / 32, out]."""
    bits = checkpoint.quantization.bits
    return {
        (tensor.shape[0] * 32 // bits, tensor.shape[1])
        for name, tensor in checkpoint.tensors.items()
        if name.endswith(".qweight") and len(tensor.shape) == 2
    }


def can_run(kernel: Kernel, checkpoint: Checkpoint, device: Device) -> bool:
    """Whether `kernel` takes this checkpoint on this device."""
    quantization = checkpoint.quantization
    return (
        kernel.device == device.kind
        and quantization.bits in kernel.bits
        and quantization.group_size in kernel.group_sizes
        and (kernel.takes_act_order or not quantization.is_permuted)
        and (kernel.takes_asymmetric or quantization.is_symmetric)
        and (device.has_compiler or not kernel.needs_compiler)
        and device.capability >= kernel.min_capability
        and all(takes_shape(kernel, *shape, quantization.group_size) for shape in matrix_shapes(checkpoint))
    )


def takes_shape(kernel: Kernel, in_features: int, out_features: int, group_size: int) -> bool:
    """Whether `kernel` takes a matrix of these sides with groups of `group_size` along its inputs."""
    sides = (in_features, out_features)
    return (
        all(side % kernel.multiple == 0 for side in sides)
        and any(side % kernel.either_multiple == 0 for side in sides)
        and (kernel.takes_part_groups or in_features % group_size == 0)
    )


def choose_kernel(checkpoint: Checkpoint, device: Device, forced: str | None = None) -> tuple[Kernel, str]:
    """The kernel to run `checkpoint` with, and the key of the sentence that says why (section "kernel").

    Raises EngineError where none takes it, or where the `forced` one does not.
    """
    able = [kernel for kernel in KERNELS if can_run(kernel, checkpoint, device)]
    if forced is not None:
        chosen = next((kernel for kernel in able if kernel.name == forced), None)
        if chosen is None:
            names = ", ".join(kernel.name for kernel in able) or "-"
            raise EngineError("kernel_refused", kernel=forced, model=checkpoint.name, able=names)
        return chosen, "asked_for"
    if not able:
        raise EngineError("no_kernel", model=checkpoint.name, quantization=checkpoint.quantization.label)
    with_compiler = replace(device, has_compiler=True)
    best = next(kernel for kernel in KERNELS if can_run(kernel, checkpoint, with_compiler))
    return able[0], able[0].name if best == able[0] else "no_compiler"
