"""Checks of Python, .venv, driver, torch, compilers and kernels. Only a process of its own imports torch."""

from __future__ import annotations

import json
import platform
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
from core.memory.kernels.registry import has_c_compiler

OLDEST_PYTHON = (3, 11)
TORCH_S = 120.0
# Prints what the engine's process would see.
ASK_TORCH = """
import json, torch
flags = getattr(torch._C, "_cuda_getArchFlags", lambda: None)() or ""
print(json.dumps([torch.__version__, torch.version.cuda, torch.cuda.is_available(), *flags.split()]))
"""


def check_machine(gpus: GpuSnapshot) -> Iterator[CheckResult]:
    yield check_python(sys.version_info[:2])
    yield check_venv(Path(sys.prefix))
    yield check_driver(gpus)
    yield check_torch(gpus)
    yield check_compiler(bool(gpus.gpus), has_c_compiler())
    yield check_kernels(bool(gpus.gpus), cache_dir() / "kernels")


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


def check_compiler(has_gpu: bool, is_there: bool) -> CheckResult:
    key = "compiler_not_needed" if not has_gpu else "compiler_ok" if is_there else "compiler_none"
    return result("compiler", "ok", key)


def check_kernels(has_gpu: bool, folder: Path) -> CheckResult:
    """`folder` holds the machine code of our own kernel."""
    if not has_gpu:
        return result("kernels", "ok", "kernels_not_needed")
    return result("kernels", "ok", "kernels_ok" if any(folder.glob("*.cubin")) else "kernels_none")
