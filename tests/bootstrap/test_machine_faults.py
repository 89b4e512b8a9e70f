"""What exceptions say of the machine: too little memory, and parts of .venv that are gone."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from core.bootstrap.machine_faults import explain_faults, fault_in_log, fault_of_machine
from core.common.errors import DeckError
from core.common.paths import ROOT
from core.common.terminal import Terminal

NUMPY = "Error importing numpy: you should not try to import numpy from its source directory"


def numpys() -> ImportError:
    """What numpy makes of a library that does not fit into the memory that is allowed."""
    error = ImportError(NUMPY)
    error.__cause__ = ImportError("libscipy_openblas64_.so: failed to map segment from shared object")
    return error


@pytest.mark.parametrize(
    ("error", "key"),
    [
        (MemoryError(), "no_memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
         "no_memory"),
        (RuntimeError("can't start new thread"), "no_memory"),
        (OSError(12, "Cannot allocate memory"), "no_memory"),
        (RuntimeError("std::bad_alloc"), "no_memory"),
        (MemoryError("Unable to allocate 3.38 MiB for an array with shape (576, 1536)"), "no_memory"),
        (numpys(), "no_memory"),
        (ModuleNotFoundError("No module named 'starlette'"), "venv_broken"),
        (ImportError("libcudart.so.12: cannot open shared object file: No such file or directory"), "venv_broken"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), None),
        (OSError(2, "No such file or directory"), None),
        (ValueError("a model without memory of its own"), None),
    ],
)  # fmt: skip
def test_an_exception_is_known_by_what_it_says(error: Exception, key: str | None) -> None:
    fault = fault_of_machine(error)
    assert (fault and fault.key) == key


def test_what_a_process_wrote_tells_the_same() -> None:
    log = "Traceback (most recent call last):\n  File \"x.py\", line 1\nModuleNotFoundError: No module named 'gguf'\n"
    fault = fault_in_log(log)
    assert fault is not None and (fault.key, fault.params["why"]) == ("venv_broken", "No module named 'gguf'")
    numpy_log = "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 3.38 MiB for an array\n"
    fault = fault_in_log(numpy_log)
    assert fault is not None and fault.key == "no_memory"
    assert fault_in_log("INFO: ModuleNotFoundError was seen\nall is well\n") is None


def test_only_faults_of_the_machine_are_explained() -> None:
    out = io.StringIO()

    def fail() -> int:
        raise MemoryError

    assert explain_faults(fail, Terminal("en", out)) == 1
    assert "too little memory" in out.getvalue()

    def break_down() -> int:
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        explain_faults(break_down, Terminal("en", out))

    def refuse() -> int:
        raise DeckError("gpu_no_driver")

    with pytest.raises(DeckError):
        explain_faults(refuse, Terminal("en", out))


@pytest.mark.parametrize("package", ["starlette", "tokenizers", "httpx2"])
def test_a_command_that_comes_upon_a_missing_package_says_what_to_do(package: str) -> None:
    """As with `rm -r` of it; here its import alone is shut."""
    code = f"""
import sys
sys.modules[{package!r}] = None
from core.bootstrap import machine_faults
machine_faults.mark_damaged = print
sys.exit(machine_faults.explain_faults(lambda: __import__({package!r})))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert done.returncode == 1
    assert package in done.stderr and "The next start" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout.strip() == str(ROOT / ".venv")
