"""Runs the kernels of core/worker/kernels/cuda on a CPU: compiled by g++ over cuda_on_cpu.h, block after block.

For kernels whose instructions of one GPU alone (PTX) have a way without them; tensor cores and copies do.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from core.worker.kernels import (
    cache_attention,
    gptq_block,
    logprobs_kernel,
    low_rank,
    recurrent,
    recurrent_check,
    sampling_kernel,
    step_ops,
)
from core.worker.kernels.nvrtc import SOURCES, Argument, _value
from tests.support import compiled_kernels
from tests.support.compiled_kernels import kept_library

HEADER = Path(__file__).parent / "cuda_on_cpu.h"
# In place of what compute capability 9.0 alone has.
HOPPER, HOPPER_SOURCES = Path(__file__).parent / "hopper.h", ("hopper.cuh", "warpgroup_products.cuh")
# Shared memory is static; that of a template would be one for all libraries, whatever their sizes.
OPTIONS = [
    *compiled_kernels.OPTIONS, "-O2", "-fno-strict-aliasing", "-fno-gnu-unique", "-U_FORTIFY_SOURCE", "-shared",
    "-fPIC",
]  # fmt: skip
# Each thread of a block costs a turn at every exchange. So many still are several warps.
SAMPLE_THREADS = 256
KERNEL = re.compile(r'extern "C" __global__ void (?:__\w+__\([^()]*\)\s*)*(\w+)\(([^)]*)\)')
# Conversions that every GPU has; the rest of PTX is for newer ones.
IN_CPP = {
    'asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x));': "r = half_to_float(x);",
    'asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(x));': "r = float_to_half(x);",
    "extern __shared__ uint4 shared[];": "uint4* shared = (uint4*)shared_memory;",
}
KERNELS = (step_ops, cache_attention, gptq_block, logprobs_kernel, low_rank, sampling_kernel, recurrent)


class CpuGpu:
    """What kernels ask of a GPU."""

    shared_memory_per_block_optin = 99 * 1024
    shared_memory_per_multiprocessor = 100 * 1024


class CpuHopper:
    """One of compute capability 9.0."""

    shared_memory_per_block_optin = 227 * 1024
    shared_memory_per_multiprocessor = 228 * 1024


class CpuModule:
    """Stands in for CudaModule."""

    def __init__(self, source: str, defines: Mapping[str, str | int], device: torch.device) -> None:
        for ptx, cpp in IN_CPP.items():
            source = source.replace(ptx, cpp)
        for file, text in zip(HOPPER_SOURCES, (HOPPER.read_text("utf-8"), ""), strict=True):
            source = source.replace((SOURCES / file).read_text("utf-8"), text)
        lines = [f"#define {name} {value}" for name, value in defines.items()]
        lines += [HEADER.read_text("utf-8"), source]
        for name, parameters in KERNEL.findall(source):
            types = [parameter.rpartition(" ")[0] for parameter in parameters.split(",")]
            arguments = ", ".join(f"*({one}*)a[{index}]" for index, one in enumerate(types))
            lines.append(f'extern "C" void launch_{name}(void** a) {{ {name}({arguments}); }}')
        text = "\n".join(lines)

        def compile_into(file: Path) -> None:
            subprocess.run(["g++", "-x", "c++", *OPTIONS, "-o", str(file), "-"], input=text, text=True, check=True)

        self._library = kept_library([*OPTIONS, text], compile_into)

    def kernel(self, name: str, shared_bytes: int = 0) -> CpuKernel:
        return CpuKernel(self._library, name)


class CpuKernel:
    """Stands in for CudaKernel."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self._run, self._launch = library.run_on_cpu, getattr(library, f"launch_{name}")

    def most_blocks(self, num_threads: int) -> int:
        return 3

    def __call__(
        self, grid: tuple[int, int, int], num_threads: int, *arguments: Argument, starts_early: bool = True
    ) -> None:
        values = [_value(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        self._run(self._launch, pointers, *grid, num_threads)


@contextmanager
def cuda_on_cpu(capability: tuple[int, int] = (5, 2)) -> Iterator[None]:
    """Let the kernels of a captured step run on the CPU inside the `with` block. Skips the test without g++.
    capability: (5, 2), or (9, 0) for attention over the cache as that has it."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ for CUDA on a CPU")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling_kernel, "SINGLE_BLOCK_THREADS", SAMPLE_THREADS)
        patch.setattr(torch.cuda, "get_device_properties", lambda device: CpuGpu if capability < (9, 0) else CpuHopper)
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        for module in KERNELS:
            patch.setattr(module, "CudaModule", CpuModule)
        forget()
        yield
        forget()


def forget() -> None:
    """Nothing that was made with one kind of module is used with another."""
    for made in (
        step_ops.module_for,
        step_ops.kernel_for,
        cache_attention.kernels_for,
        low_rank.low_rank_kernels_for,
        gptq_block.gptq_block_kernel_for,
        recurrent.module_for,
        recurrent_check.delta_kernels_for,
    ):
        made.cache_clear()
    sampling_kernel.sampling_kernel_for.cache_clear()
    logprobs_kernel.logprobs_kernel_for.cache_clear()
