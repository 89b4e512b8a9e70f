"""Compiles CUDA C++ with NVRTC, which comes with torch, and launches it into torch's streams.

NVRTC needs no compiler on the machine. Compiled code is kept in the user's cache folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeAlias

import torch

from core.common.files import write_atomically
from core.common.paths import cache_dir

log = logging.getLogger(__name__)
SOURCES = Path(__file__).parent / "cuda"
SHARED_SIZE_BYTES = 1  # CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: what a kernel declares itself
MAX_DYNAMIC_SHARED_SIZE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
PROGRAMMATIC_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
# Shared memory of a block that needs no attribute set.
PLAIN_SHARED_BYTES = 48 * 1024
DIGEST_BYTES = 32
Argument: TypeAlias = "torch.Tensor | int | float | ctypes.c_longlong | ctypes.Structure | None"


class CudaCodeError(RuntimeError):
    """A kernel could not be compiled, loaded or launched; the text is the library's own."""


class _Value(ctypes.Union):
    _fields_ = [("flag", ctypes.c_int), ("room", ctypes.c_char * 64)]


class _Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("gap", ctypes.c_char * 4), ("value", _Value)]


class _Launch(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared")),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", ctypes.c_uint),
    ]


def read_source(*names: str, **made: Iterable[str]) -> str:
    """The text of common.cuh and the files `names`. A line that is a keyword of `made` becomes that keyword's lines."""
    source = "\n".join((SOURCES / file).read_text("utf-8") for file in ("common.cuh", *names))
    for name, lines in made.items():
        source = source.replace(f"\n{name}\n", "\n" + "\n".join(lines) + "\n")
    return source


@cache
def library() -> ctypes.CDLL:
    """NVRTC and CUDA's driver, through torch's library that is linked with both. Raises CudaCodeError."""
    try:
        return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libcaffe2_nvrtc.so"))
    except OSError as error:
        raise CudaCodeError(str(error)) from error


def compiled(source: str, defines: Mapping[str, str | int], capability: tuple[int, int]) -> bytes:
    """Machine code (cubin) for GPUs of `capability`, from the cache folder if it is there. Raises CudaCodeError."""
    options = [
        # "a": wgmma, which only 9.0 has.
        f"--gpu-architecture=sm_{capability[0]}{capability[1]}{'a' * (capability == (9, 0))}",
        "--std=c++17",
        *(f"-D{name}={value}" for name, value in sorted(defines.items())),
    ]
    major, minor = ctypes.c_int(), ctypes.c_int()
    library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    key = hashlib.sha256("\0".join([source, *options, f"{major.value}.{minor.value}"]).encode()).hexdigest()
    file = cache_dir() / "kernels" / f"{key}.cubin"
    kept = _read_whole(file)
    if kept is not None:
        return kept
    # In a thread of its own: NVRTC 12.4 leaves its caller's locale at "C", in which Python reads files as ASCII.
    with ThreadPoolExecutor(1) as threads:
        code = threads.submit(_compile, source, options).result()
    try:
        write_atomically(file, code + _digest(code))
    except OSError as error:
        log.warning("%s was not written, so the next load compiles it again: %s", file, error)
    return code


def _read_whole(file: Path) -> bytes | None:
    """The code in a file of the cache folder, which ends with the code's digest. None for a damaged file: the driver
    would refuse it, or end the process."""
    try:
        kept = file.read_bytes()
    except OSError:
        return None
    code = kept[:-DIGEST_BYTES]
    return code if _digest(code) == kept[-DIGEST_BYTES:] else None


def _digest(code: bytes) -> bytes:
    return hashlib.sha256(code).digest()


def _compile(source: str, options: Sequence[str]) -> bytes:
    lib, program = library(), ctypes.c_void_p()
    _check(lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"llamadeck.cu", 0, None, None), "create")
    try:
        names = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if lib.nvrtcCompileProgram(program, len(options), names) != 0:
            raise CudaCodeError(_text(program, "ProgramLog"))
        return _bytes(program, "CUBIN")
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


def _bytes(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)), what)
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(library(), f"nvrtcGet{what}")(program, buffer), what)
    return buffer.raw


def _text(program: ctypes.c_void_p, what: str) -> str:
    return _bytes(program, what).rstrip(b"\0").decode(errors="replace").strip()


def _check(code: int, what: str) -> None:
    if code != 0:
        raise CudaCodeError(f"{what}: CUDA's error {code}")


class CudaModule:
    """Compiled kernels on one GPU, by name."""

    def __init__(self, source: str, defines: Mapping[str, str | int], device: torch.device) -> None:
        with torch.cuda.device(device):
            # A module is loaded into the context that torch works in.
            torch.cuda.current_stream().synchronize()
            code = compiled(source, defines, torch.cuda.get_device_capability(device))
            self._handle = ctypes.c_void_p()
            _check(library().cuModuleLoadData(ctypes.byref(self._handle), code), "cuModuleLoadData")
        self._device = device

    def kernel(self, name: str, shared_bytes: int = 0) -> CudaKernel:
        """The kernel `name`, launched with `shared_bytes` of dynamic shared memory."""
        function = ctypes.c_void_p()
        _check(library().cuModuleGetFunction(ctypes.byref(function), self._handle, name.encode()), name)
        own_bytes = ctypes.c_int()
        _check(library().cuFuncGetAttribute(ctypes.byref(own_bytes), SHARED_SIZE_BYTES, function), name)
        if own_bytes.value + shared_bytes > PLAIN_SHARED_BYTES:
            _check(library().cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED_SIZE, shared_bytes), name)
        return CudaKernel(function, name, shared_bytes, self._device)


class CudaKernel:
    """One kernel, by programmatic dependent launch where the GPU has it: its blocks may start while the kernel before
    still runs. Each block waits (pdl_wait in cuda/common.cuh) before it touches what other kernels write."""

    def __init__(self, function: ctypes.c_void_p, name: str, shared_bytes: int, device: torch.device) -> None:
        self._function, self._name, self._shared_bytes, self._device = function, name, shared_bytes, device
        self._attribute = _Attribute(PROGRAMMATIC_SERIALIZATION, value=_Value(flag=1))
        self._num_attributes = int(torch.cuda.get_device_capability(device) >= (9, 0))

    def most_blocks(self, num_threads: int) -> int:
        """How many blocks of `num_threads` threads the GPU runs at once."""
        each = ctypes.c_int()
        arguments = (self._function, num_threads, ctypes.c_size_t(self._shared_bytes))
        _check(library().cuOccupancyMaxActiveBlocksPerMultiprocessor(ctypes.byref(each), *arguments), self._name)
        return max(1, each.value) * int(torch.cuda.get_device_properties(self._device).multi_processor_count)

    def __call__(
        self, grid: tuple[int, int, int], num_threads: int, *arguments: Argument, starts_early: bool = True
    ) -> None:
        """Launch into the current stream of the kernel's GPU. Tensors are passed as pointers, None as a null pointer,
        numbers as int or float, structures by value. Not `starts_early`: it reads, before it waits, what the kernel
        before writes. Raises CudaCodeError."""
        values = [_value(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        launch = _Launch(
            *grid, num_threads, 1, 1, self._shared_bytes, torch.cuda.current_stream(self._device).cuda_stream,
            ctypes.pointer(self._attribute), self._num_attributes * starts_early,
        )  # fmt: skip
        # A stream's handle belongs to the current GPU, and a kernel to the GPU that it was loaded on.
        with torch.cuda.device(self._device):
            _check(library().cuLaunchKernelEx(ctypes.byref(launch), self._function, pointers, None), self._name)


def _value(
    argument: Argument,
) -> ctypes.c_void_p | ctypes.c_int | ctypes.c_float | ctypes.c_longlong | ctypes.Structure:
    if argument is None:
        return ctypes.c_void_p(0)
    if isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    return argument if isinstance(argument, ctypes.c_longlong | ctypes.Structure) else ctypes.c_int(argument)
