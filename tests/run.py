"""What ./llamadeck test does: adds what tests need to .venv, then runs each check."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from core.bootstrap.pip import InstallError, pip_install, run_step
from core.bootstrap.stamp import REQUIREMENTS
from core.bootstrap.venv import lock
from core.common.errors import DeckError
from core.common.paths import ROOT, cache_dir
from core.common.terminal import Terminal
from core.starter import build as starter
from core.vllm.server import ensure_venv
from tests.support.api_clients import install_api_clients
from tests.support.peers import install_llama_cpp

TEST_REQUIREMENTS = "requirements-test.txt"
# A file's tests share servers, so they stay together.
SIDE_BY_SIDE = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
QUICK = [*SIDE_BY_SIDE, "-m", "not (browser or engine or peers or gpu or slow)"]
# These want the machine for themselves.
ALONE = "browser or peers or gpu"
COVERAGE = ["--cov=core", "--cov=cli", "--cov=ui", "--cov-report=term:skip-covered"]
SYSTEM_PACKAGES = ["chromium", "fonts-noto-cjk", "fonts-noto-color-emoji"]


def main(
    pytest_arguments: Sequence[str], terminal: Terminal, is_quick: bool = False, tells_coverage: bool = False
) -> int:
    """Prepare, then run every check, also after one has failed; exit code 0 when all passed."""
    try:
        install_packages(terminal)
        if not is_quick:
            install_for_all_tests(terminal)
    except InstallError as error:
        terminal.write(error.last_lines())
        raise
    failed = [
        name
        for name, command in checks(pytest_arguments, is_quick, tells_coverage)
        if not passes(name, command, terminal)
    ]
    if failed:
        terminal.say("test_failed", steps=", ".join(failed))
        return 1
    terminal.say("test_passed")
    return 0


def install_for_all_tests(terminal: Terminal) -> None:
    """What only the slower tests need: a browser, two other engines, clients of the API and the starter model."""
    install_chromium(terminal)
    ensure_venv(is_cpu=True, terminal=terminal)
    # Those of all clones on this machine.
    peers = cache_dir() / "tests"
    peers.mkdir(parents=True, exist_ok=True)
    with lock(peers, terminal):
        install_llama_cpp(terminal)
        install_api_clients(terminal)
    starter.ensure_cached(terminal.steps("starter"))


def checks(pytest_arguments: Sequence[str], is_quick: bool, tells_coverage: bool) -> list[tuple[str, list[str]]]:
    runs = {"pytest": QUICK if is_quick else []}
    if not is_quick and not pytest_arguments:
        runs = {"pytest, two at a time": [*SIDE_BY_SIDE, "-m", f"not ({ALONE})"], "pytest, one by one": ["-m", ALONE]}
    coverage = [*COVERAGE, *(["--cov-append"] if len(runs) > 1 else [])] if tells_coverage else []
    return [
        ("ruff check", ["ruff", "check"]),
        ("ruff format", ["ruff", "format", "--check"]),
        ("mypy", ["mypy"]),
        *((name, ["pytest", *options, *coverage, *pytest_arguments]) for name, options in runs.items()),
    ]


def passes(name: str, command: Sequence[str], terminal: Terminal) -> bool:
    terminal.write(f"== {name}")
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT).returncode == 0


def install_packages(terminal: Terminal) -> None:
    """requirements-test.txt into .venv, unless that was done since either list of requirements changed."""
    stamp = Path(sys.prefix) / "llamadeck-test.stamp"
    wanted = b"".join((ROOT / name).read_bytes() for name in (REQUIREMENTS, TEST_REQUIREMENTS))
    digest = hashlib.sha256(wanted).hexdigest()
    with lock(ROOT, terminal) as held:
        done = stamp.read_text("utf-8") if stamp.exists() else ""
        if done == digest:
            return
        # pip takes a package whose installation was killed for an installed one.
        repair = ["--force-reinstall"] if done == "unfinished" else []
        arguments = [*repair, "-r", str(ROOT / TEST_REQUIREMENTS)]
        stamp.write_text("unfinished", "utf-8")
        pip_install(Path(sys.executable), arguments, terminal.text("test_step_packages"), terminal, [held])
        stamp.write_text(digest, "utf-8")


def install_chromium(terminal: Terminal) -> None:
    """Chromium and the fonts of its pages from the system's packages, where there is none yet."""
    if shutil.which("chromium"):
        return
    if not shutil.which("apt-get") or os.geteuid() != 0:
        raise DeckError("test_no_chromium")
    title = terminal.text("test_step_chromium")
    install = ["apt-get", "install", "-y", "--no-install-recommends", *SYSTEM_PACKAGES]
    for command in (["apt-get", "update"], install):
        run_step(["env", "DEBIAN_FRONTEND=noninteractive", *command], title, terminal)
