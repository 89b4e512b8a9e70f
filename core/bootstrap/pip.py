"""Quiet `pip install`, with sentences for its failures. Standard library only."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.common.errors import DeckError
from core.common.terminal import Terminal

LINES_SHOWN = 15
# A container of NVIDIA's holds pip to its own packages by PIP_CONSTRAINT, which have nothing to do with those in .venv.
IGNORED_VARIABLES = ("PIP_CONSTRAINT",)
# A person's pip may be told, in pip.conf too, to install elsewhere, to leave dependencies out, or to fetch again what
# is there, torch included; in .venv none of that can work. The index, proxies and certificates stay as they are set.
PLAIN = dict.fromkeys(("PIP_USER", "PIP_NO_DEPS", "PIP_UPGRADE", "PIP_IGNORE_INSTALLED", "PIP_FORCE_REINSTALL"), "0")
DISK_FULL = r"No space left on device|Disk quota exceeded"
NO_NETWORK = (
    r"NewConnection|NameResolution|ConnectTimeout|ReadTimeout|Read timed out|ProxyError"
    r"|ConnectionReset|RemoteDisconnected"
)
BUILD_FAILED = r"[Ff]ailed (to build|building)|error: command|metadata-generation-failed"
HEADER_MISSING = r"fatal error: \S+\.h: No such file"


class InstallError(DeckError):
    """A step of an installation failed; `log` is what it wrote."""

    def __init__(self, key: str, log: str, **params: str | int | float) -> None:
        super().__init__(key, **params)
        self.log = log

    def last_lines(self) -> str:
        return "\n".join(self.log.rstrip().splitlines()[-LINES_SHOWN:])


def pip_install(
    python: Path, arguments: Sequence[str], title: str, terminal: Terminal, inherited_fds: Sequence[int] = ()
) -> None:
    """`pip install` under `python`; see `run_step`."""
    options = ["--quiet", "--disable-pip-version-check", "--no-input"]
    environment = {name: value for name, value in os.environ.items() if name not in IGNORED_VARIABLES} | PLAIN
    run_step([str(python), "-m", "pip", "install", *options, *arguments], title, terminal, inherited_fds, environment)


def run_step(
    command: Sequence[str],
    title: str,
    terminal: Terminal,
    inherited_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run `command`, telling for how long it has been at work; raises InstallError with its output.

    `inherited_fds`: file descriptors that it keeps open; without an `environment` it gets this process's.
    """
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        with subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, pass_fds=inherited_fds, env=environment
        ) as process:
            while process.returncode is None:
                terminal.status_line(f"  {title} … {time.monotonic() - start:.0f} s")
                try:
                    process.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    continue
        if process.returncode:
            log.seek(0)
            text = log.read()
            raise InstallError(failure_key(text, has_compiler()), text)
    terminal.write(f"  {title}: {time.monotonic() - start:.0f} s")


def failure_key(log: str, compiler: bool) -> str:
    """The sentence that explains a failed step by what it wrote; `compiler`: a C compiler is installed."""
    if re.search(DISK_FULL, log):
        return "setup_disk_full"
    if re.search(NO_NETWORK, log):
        return "setup_no_network"
    if re.search(HEADER_MISSING, log) or (not compiler and re.search(BUILD_FAILED, log)):
        return "setup_no_compiler"
    if "No matching distribution found" in log:
        return "setup_no_package"
    return "setup_failed"


def has_compiler() -> bool:
    return any(shutil.which(name) for name in ("cc", "gcc", "clang"))
