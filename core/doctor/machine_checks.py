"""Checks of Python, .venv, driver, torch, compilers and kernels. Only a process of its own imports torch."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from core.bootstrap.stamp import is_complete
from core.common.errors import DeckError
from core.common.paths import ROOT, cache_dir
from core.doctor.check_result import CheckResult, error_result, result
from core.gpu.cuda_driver import CudaDriver, ask_cuda_apart
from core.gpu.snapshot import GpuSnapshot
from core.gpu.torch_support import InstalledTorch, find_gpu_error
from core.memory.kernels.registry import COMPILERS, KERNELS, has_python_headers

OLDEST_PYTHON = (3, 11)
TORCH_S = 120.0
# Prints what the engine's process would see.
ASK_TORCH = """
import json, torch
flags = getattr(torch._C, "_cuda_getArchFlags", lambda: None)() or ""
print(json.dumps([torch.__version__, torch.version.cuda, torch.cuda.is_available(), *flags.split()]))
"""
C_COMPILERS = ("cc", "gcc", "clang")


def check_machine(gpus: GpuSnapshot) -> Iterator[CheckResult]:
    yield check_python(sys.version_info[:2])
    yield check_venv(Path(sys.prefix))
    yield check_driver(gpus)
    yield check_torch(gpus)
    yield check_compilers(bool(gpus.gpus), frozenset(usable_compilers()))
    yield check_kernels(bool(gpus.gpus), cache_dir() / "kernels", library_folder())


def check_python(version: tuple[int, ...]) -> CheckResult:
    is_old = version < OLDEST_PYTHON
    shown = f"Python {platform.python_version()}" if not is_old else f"Python {'.'.join(map(str, version))}"
    return result("python", "fail" if is_old else "ok", "python_old" if is_old else "python_ok", version=shown)


def check_venv(prefix: Path) -> CheckResult:
    is_right = prefix.resolve() == (ROOT / ".venv").resolve() and is_complete(ROOT)
    return result("venv", "ok" if is_right else "warn", "venv_ok" if is_right else "venv_other", path=str(prefix))


def check_driver(gpus: GpuSnapshot) -> CheckResult:
    if not gpus.gpus:
        error = gpus.error or DeckError("gpu_none_found")
        return error_result("driver", "warn", error)
    names = ", ".join(gpu.name or "?" for gpu in gpus.gpus)
    driver, cuda = gpus.driver_version or "?", gpus.cuda_version or "?"
    return result("driver", "ok", "driver_ok", driver=driver, cuda=cuda, gpus=names)


def check_torch(gpus: GpuSnapshot, python: str = sys.executable) -> CheckResult:
    """What torch is and sees, and why it can use none of the `gpus`."""
    has_gpu = bool(gpus.gpus)
    try:
        asked = subprocess.run([python, "-c", ASK_TORCH], capture_output=True, text=True, timeout=TORCH_S, check=True)
        version, cuda, sees_gpu, *architectures = json.loads(asked.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        why = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        return result("torch", "fail", "torch_broken", why=why[:200])
    except (subprocess.TimeoutExpired, OSError, ValueError, IndexError) as error:
        return result("torch", "fail", "torch_broken", why=type(error).__name__)
    known = InstalledTorch(version, cuda, tuple(architectures) or None)
    driver = CudaDriver(0, num_gpus=1, cuda=cuda) if sees_gpu else ask_cuda_apart() if has_gpu else None
    unused = find_gpu_error(gpus, known, driver)
    if unused is not None:
        return error_result("torch", "fail", unused)
    if has_gpu and not sees_gpu:
        return result("torch", "fail", "torch_no_gpu", version=version, cuda=cuda)
    key = "torch_gpu" if sees_gpu else "torch_cpu"
    return result("torch", "ok", key, version=version, **({"cuda": cuda} if sees_gpu else {}))


def usable_compilers() -> list[str]:
    """What is installed of all that a kernel may be compiled with; what they make needs Python's headers."""
    return [name for name in (*COMPILERS, *C_COMPILERS) if shutil.which(name)] if has_python_headers() else []


def check_compilers(has_gpu: bool, there: frozenset[str]) -> CheckResult:
    names = ", ".join(sorted(there))
    if not has_gpu:
        return result("compiler", "ok", "compiler_not_needed")
    if not there & set(C_COMPILERS):
        return result("compiler", "ok", "compiler_no_c")
    if set(COMPILERS) - there:
        return result("compiler", "ok", "compiler_no_cuda", names=names)
    return result("compiler", "ok", "compiler_ok", names=names)


def library_folder() -> Path:
    """Where gptqmodel keeps what it compiled by itself, one folder a kernel."""
    given = os.environ.get("GPTQMODEL_TORCH_EXTENSIONS_DIR")
    return Path(given) if given else Path.home() / ".cache" / "gptqmodel" / "torch_extensions"


def check_kernels(has_gpu: bool, *folders: Path) -> CheckResult:
    """`folders` hold the machine code of our own kernel, and a folder for each other kernel."""
    if not has_gpu:
        return result("kernels", "ok", "kernels_not_needed")
    wanted = tuple(kernel.name.replace("_v2", "v2") for kernel in KERNELS if kernel.needs_compiler)
    built = {library.relative_to(folder).parts[0] for folder in folders for library in folder.glob("*/**/*.so")}
    names = ["llamadeck"] if any(any(folder.glob("*.cubin")) for folder in folders) else []
    names += sorted(name for name in built if name.startswith(wanted))
    return result("kernels", "ok", "kernels_ok" if names else "kernels_none", names=", ".join(names))
