"""Runs the engine's own CUDA kernels on a CPU, thread by thread, over what tests/support/ptx_on_cpu.h says of PTX.

It shows that the numbers are right, not that they are fast. It needs g++, and tensors on the CPU.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from core.worker.kernels import (
    decode_attention,
    dense_small_batch,
    expert_kernels,
    expert_low_rank,
    expert_prompts,
    narrow_products,
    packed_prefill,
    packed_small_batch,
    routed_pairs,
    router_kernel,
    row_norm,
)
from core.worker.kernels.nvrtc import Argument, _value
from tests.support.compiled_kernels import OPTIONS, kept_library

HEADER = Path(__file__).with_name("ptx_on_cpu.h")
NESTED = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
BEFORE_NAME = rf"(?:(?:__launch_bounds__|__cluster_dims__)\s*{NESTED}\s*)*"
KERNEL = re.compile(rf'extern "C" __global__ void\s*{BEFORE_NAME}(\w+)\s*({NESTED})')
SHARED = re.compile(r"extern __shared__ (?:__align__\(\d+\) )?([\w ]+?) (\w+)\[\];")
ASM = re.compile(r"\basm\s*(?:volatile)?\s*\(")
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
OPERAND = re.compile(r'"[=+]?[rhlfn]"\s*\(')
FIXED_SHARED = re.compile(r"__shared__ (?:__align__\(\d+\) )?float (\w+)\[[\d +]+\];")
FLAG_SHARED = re.compile(r"__shared__ bool (\w+);")
# How many blocks of a launch run at once, as far as nothing needs to know.
MOST_BLOCKS = 1 << 20
CAPTURED: dict[str, Any] = {"text": True, "capture_output": True, "check": True}


# What compiles kernels that run here, and what keeps compiled ones.
MODULES = (
    decode_attention,
    dense_small_batch,
    narrow_products,
    packed_small_batch,
    packed_prefill,
    expert_prompts,
    expert_kernels,
    expert_low_rank,
    router_kernel,
    routed_pairs,
    row_norm,
)
CACHES = (
    packed_small_batch.kernels_for,
    packed_prefill.prefill_kernels_for,
    expert_kernels.expert_kernels_for,
    expert_low_rank.expert_low_rank_kernels_for,
    expert_prompts.prompt_kernels_for,
    routed_pairs.pair_kernels_for,
    row_norm.norm_kernel,
    dense_small_batch.module_for,
    dense_small_batch.dense_kernels_for,
    narrow_products.narrow_kernels_for,
    decode_attention.module_for,
    router_kernel.router_kernels_for,
)


class Gpu:
    """What kernels ask of a GPU before they are compiled."""

    major, minor, multi_processor_count = 8, 0, 4
    shared_memory_per_block_optin, shared_memory_per_multiprocessor = 227 * 1024, 228 * 1024


@contextmanager
def kernels_on_cpu() -> Iterator[None]:
    """Let the kernels for quantized matrices run on the CPU inside the `with` block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_properties", lambda device: Gpu)
        for module in MODULES:
            patch.setattr(module, "CudaModule", CpuModule)
        for cache in CACHES:
            cache.cache_clear()
        yield
        for cache in CACHES:
            cache.cache_clear()


class CpuModule:
    """In place of nvrtc.CudaModule."""

    # Fewer blocks than tiles, so that each has several turns.
    max_blocks = 3

    def __init__(self, source: str, defines: Mapping[str, str | int], device: torch.device) -> None:
        options = [f"-D{name}={value}" for name, value in sorted(defines.items())]

        def compile_into(file: Path) -> None:
            compiler = ["g++", "-x", "c++", *OPTIONS]
            command = [*compiler, "-D__CUDA_ARCH__=800", "-E", "-P", *options, "-"]
            expanded = subprocess.run(command, input=source, **CAPTURED).stdout
            command = [*compiler, "-Og", "-shared", "-fPIC", "-include", str(HEADER), "-o", str(file), "-"]
            subprocess.run(command, input=as_cpp(expanded), **CAPTURED)

        own = [file.read_text("utf-8") for file in (Path(__file__), HEADER)]
        self._library = kept_library([source, *options, *own], compile_into)

    def kernel(self, name: str, shared_bytes: int = 0) -> CpuKernel:
        return CpuKernel(self._library, name, shared_bytes)


class CpuKernel:
    """In place of nvrtc.CudaKernel."""

    def __init__(self, library: ctypes.CDLL, name: str, shared_bytes: int) -> None:
        self._library, self._function, self._shared_bytes = library, getattr(library, f"call_{name}"), shared_bytes
        library.launch.restype = ctypes.c_bool

    def most_blocks(self, num_threads: int) -> int:
        return CpuModule.max_blocks

    def __call__(
        self, grid: tuple[int, int, int], num_threads: int, *arguments: Argument, starts_early: bool = True
    ) -> None:
        values = [_value(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        size = (ctypes.c_uint * 3)(*grid)
        if not self._library.launch(self._function, size, num_threads, self._shared_bytes, MOST_BLOCKS, pointers):
            raise RuntimeError("all threads of a kernel wait")


def as_cpp(source: str) -> str:
    """Preprocessed CUDA C++ as C++: with calls in place of `asm`, and a function call_NAME for each kernel, which takes
    pointers to its arguments."""
    for name, parameters in KERNEL.findall(source):
        types = [one.strip().rsplit(" ", 1)[0] for one in " ".join(parameters[1:-1].split()).split(",")]
        values = ", ".join(f"*({type}*)a[{place}]" for place, type in enumerate(types))
        source += f'\nextern "C" void call_{name}(void** a) {{ {name}({values}); }}'
    source = SHARED.sub(r"\1* \2 = (\1*)fiber->block->shared.data();", source)
    source = FIXED_SHARED.sub(r"float* \1 = fiber->block->fixed;", source)
    source = FLAG_SHARED.sub(r"bool& \1 = fiber->block->flag;", source)
    return "".join(without_asm(source))


def without_asm(source: str) -> Iterator[str]:
    end = 0
    for found in ASM.finditer(source):
        yield source[end : found.start()]
        begin, end = found.end(), end_of_brackets(source, found.end())
        strings = list(STRING.finditer(source, begin, end))
        # The instructions' own colons and brackets are in strings.
        colon = next((at for at in range(begin, end) if source[at] == ":" and not is_within(at, strings)), end)
        text = "".join(one[1] for one in strings if one.start() < colon)
        operands = [
            source[one.end() - 1 : end_of_brackets(source, one.end())] for one in OPERAND.finditer(source, colon, end)
        ]
        yield f"ptx::{instruction(text)}({', '.join(operands)})"
    yield source[end:]


def is_within(at: int, strings: list[re.Match[str]]) -> bool:
    return any(one.start() < at < one.end() for one in strings)


def end_of_brackets(source: str, at: int) -> int:
    """Where the bracket that is open before `at` has been closed."""
    depth = 1
    while depth:
        string = STRING.match(source, at)
        depth += 0 if string else (source[at] == "(") - (source[at] == ")")
        at = string.end() if string else at + 1
    return at


def instruction(text: str) -> str:
    """The names of a text's PTX instructions as one name."""
    steps = [step.strip(" {}") for step in text.replace("\\n", " ").split(";")]
    names = [re.sub(r"^@\w+ ", "", step).split(" ")[0] for step in steps if step and not step.startswith(".reg")]
    return re.sub(r"\W+", "_", "_".join(names))
