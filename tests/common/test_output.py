"""Commands whose output cannot be written: a reader that has gone, a full disk, streams that are closed."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from core.common.paths import ROOT

FIT = ("fit", "Llama-2-7B-chat-GPTQ", "--gpu", "A40")
COMMANDS = [FIT, (*FIT, "--json"), ("gpus", "--known"), ("characters",), ("characters", "--json"), ("models", "--json"),
            ("character", "export", "Ada", "--out", "-"), ("--help",), ("doctor", "--port", "1")]  # fmt: skip


def call(command: tuple[str, ...], redirection: str, tmp_path: Path) -> tuple[int, str]:
    """Exit code and standard error of a command that a shell starts with `redirection`."""
    line = f'"$0" -m cli.main "$@" {redirection}'
    environment = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin", "LLAMADECK_MODELS": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", line, sys.executable, *command],
        cwd=ROOT,
        env=environment | {"LLAMADECK_DATA": str(tmp_path)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_reader_that_has_had_enough_ends_a_command_quietly(command: tuple[str, ...], tmp_path: Path) -> None:
    """As a shell sees it: by SIGPIPE, which it shows as 141."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", *command],
        cwd=ROOT,
        env={"LLAMADECK_MODELS": str(tmp_path), "LLAMADECK_DATA": str(tmp_path), "LC_ALL": "C.UTF-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    with process.stderr:
        told = process.stderr.read()
    assert (process.wait(), told) == (-signal.SIGPIPE, b"")


def has_full_device() -> bool:
    try:
        return stat.S_ISCHR(Path("/dev/full").stat().st_mode)
    except OSError:
        return False


NEEDS_FULL_DEVICE = pytest.mark.skipif(not has_full_device(), reason="needs the device /dev/full")


@pytest.mark.parametrize(
    ("command", "place", "why"),
    [
        pytest.param(FIT, ">/dev/full", "No space left", marks=NEEDS_FULL_DEVICE),
        pytest.param((*FIT, "--json"), ">/dev/full", "No space left", marks=NEEDS_FULL_DEVICE),
        pytest.param(("--help",), ">/dev/full", "No space left", marks=NEEDS_FULL_DEVICE),
        (FIT, ">&-", "Bad file descriptor"),
        (("character", "export", "Ada", "--out", "-"), ">&-", "Bad file descriptor"),
    ],
)
def test_an_output_that_takes_nothing_is_a_sentence(
    command: tuple[str, ...], place: str, why: str, tmp_path: Path
) -> None:
    code, said = call(command, place, tmp_path)
    assert code == 1
    assert why in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("place", [pytest.param("2>/dev/full", marks=NEEDS_FULL_DEVICE), "2>&-", ">&- 2>&- <&-"])
def test_the_exit_code_stands_also_where_no_sentence_can(place: str, tmp_path: Path) -> None:
    code, said = call(("fit", "nothing-of-that-name", "--gpu", "A40"), place, tmp_path)
    assert code == 2, said


def test_a_word_that_the_terminal_has_no_letters_for_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "模型 🐈").mkdir()
    line = f'PYTHONIOENCODING=latin-1 PYTHONUTF8=0 "{sys.executable}" -m cli.main models'
    environment = {"LLAMADECK_MODELS": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert b"\\u6a21" in done.stdout
