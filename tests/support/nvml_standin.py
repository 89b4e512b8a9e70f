"""Helpers that put a stand-in for NVIDIA's libnvidia-ml.so.1 under the real nvidia-ml-py.

A test module gets the fixtures below by `pytest_plugins = ("tests.support.nvml_standin",)`. Everything works through
the environment of a subprocess, be it a probe that reads snapshots or a whole dashboard.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

SOURCES = Path(__file__).resolve().parent / "nvml"
ROOT = Path(__file__).resolve().parents[2]
LIBRARY = "libnvidia-ml.so.1"

# Prints one snapshot as a line of JSON for every line on its standard input.
PROBE = """
import dataclasses, json, sys
from core.common.errors import DeckError
from core.gpu.snapshot import read_snapshot

def plain(value):
    if isinstance(value, DeckError):
        return {"key": value.key, "params": value.params}
    raise TypeError(value)

for _ in sys.stdin:
    print(json.dumps(dataclasses.asdict(read_snapshot()), default=plain), flush=True)
"""


class Standin:
    """The compiled library in a folder of its own, and the scenario that its readers see."""

    def __init__(self, folder: Path, library: Path | None) -> None:
        self.folder = folder
        self.scenario = folder / "scenario.ini"
        if library is not None:
            (folder / LIBRARY).symlink_to(library)
        else:
            # A file that is no library hides a real driver's: to a reader there is no library at all.
            (folder / LIBRARY).write_bytes(b"")
        self.write_torch("2.13.0+cu126", "12.6")

    def write_torch(self, version: str, cuda: str | None) -> None:
        """Let the installed torch say this of itself. It is a folder before the real one, and cannot be used."""
        torch = self.folder / "site" / "torch"
        torch.mkdir(parents=True, exist_ok=True)
        (torch / "__init__.py").write_text("raise ImportError('a stand-in')\n", "utf-8")
        (torch / "version.py").write_text(f"__version__ = {version!r}\ncuda: str | None = {cuda!r}\n", "utf-8")

    def use_real_torch(self) -> None:
        """Let the installed torch be the one that is."""
        shutil.rmtree(self.folder / "site")

    def use(self, name: str) -> None:
        """Answer from now on as tests/nvml/<name>.ini says."""
        self.write((SOURCES / f"{name}.ini").read_text("utf-8"))

    def write(self, text: str, encoding: str = "utf-8") -> None:
        """Answer from now on as `text` says; whoever reads sees the old scenario or the new, never a half."""
        draft = self.folder / "scenario.new"
        draft.write_text(text, encoding)
        draft.replace(self.scenario)

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """`base`, or this process's environment, with the stand-in in the place of the driver's library."""
        environment = dict(os.environ if base is None else base)
        searched = [str(self.folder), environment.get("LD_LIBRARY_PATH", "")]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, searched))
        packages = [str(self.folder / "site"), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, packages))
        environment["LLAMADECK_NVML_SCENARIO"] = str(self.scenario)
        return environment

    def run(self, code: str) -> str:
        """What `code` prints in a Python process of its own that sees the stand-in."""
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, env=self.environment(), stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout.strip()


class Probe:
    """One process that reads snapshots through the real nvidia-ml-py, as often as it is asked."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROBE],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def snapshot(self) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> int:
        """Let the process end; its exit code."""
        if self.process.stdin and not self.process.stdin.closed:
            self.process.stdin.close()
        return self.process.wait()


def compile_library(folder: Path) -> Path:
    """The stand-in, compiled into `folder`."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the NVML stand-in")
    target = folder / LIBRARY
    command = [compiler, "-shared", "-fPIC", "-O1", f"-Wl,-soname,{LIBRARY}", "-o", str(target)]
    subprocess.run([*command, str(SOURCES / "standin.c")], check=True)
    return target


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml_standin(nvml_library: Path, tmp_path: Path) -> Standin:
    """A driver whose GPUs the test chooses with `use()`: one idle A40 to begin with."""
    folder = tmp_path / "nvml"
    folder.mkdir()
    standin = Standin(folder, nvml_library)
    standin.use("idle_a40")
    return standin


@pytest.fixture
def no_nvml(tmp_path: Path) -> Standin:
    """A machine without NVIDIA's library, also where there is one."""
    folder = tmp_path / "no_nvml"
    folder.mkdir()
    return Standin(folder, None)


@pytest.fixture
def start_probe() -> Iterator[Callable[[Mapping[str, str]], Probe]]:
    """Starts a probe in an environment and ends it with the test."""
    probes: list[Probe] = []

    def start(environment: Mapping[str, str]) -> Probe:
        probes.append(Probe(environment))
        return probes[-1]

    yield start
    for probe in probes:
        probe.close()


@pytest.fixture
def probe(nvml_standin: Standin, start_probe: Callable[[Mapping[str, str]], Probe]) -> Probe:
    """A process that reads what `nvml_standin` says."""
    return start_probe(nvml_standin.environment())
