"""The way to vLLM on GPUs, tried with a stand-in for vLLM's command that falls silent the first time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import scale_on_gpu
from benchmarks.deadline import Deadline
from benchmarks.figures import Figures
from benchmarks.scale_on_gpu import engine, measure, prepare, script
from core.common.paths import ROOT
from tests.support.checkpoints import Recipe, make_checkpoint

COMMAND = """
import os, sys, threading
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.support.openai_standin import OpenAiStandin
been = Path(os.environ["PYTHONPATH"]) / "been"
with OpenAiStandin(int(sys.argv[sys.argv.index("--port") + 1])) as server:
    name = sys.argv[sys.argv.index("--served-model-name") + 1]
    server.behaviour.models = [{{"id": name, "owned_by": "vllm", "max_model_len": 600}}]
    server.behaviour.silent_after = None if been.exists() else 2
    been.touch()
    threading.Event().wait()
"""


def test_a_server_is_killed_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLAMADECK_MODELS", "LLAMADECK_DATA", "XDG_CACHE_HOME", "LC_ALL"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("LLAMADECK_CPU", "1")
    monkeypatch.setattr(scale_on_gpu, "CONTEXT_TOKENS", 512)
    # In 8 bit, which vLLM is asked to serve on any CPU.
    make_checkpoint(tmp_path / "7B", Recipe(bits=8, context_tokens=600))
    place = tmp_path / "site" / "vllm" / "entrypoints" / "cli"
    place.mkdir(parents=True)
    (place / "main.py").write_text(COMMAND.format(root=str(ROOT)))
    home = tmp_path / "scale"
    prepare(home, tmp_path / "7B", tmp_path / "site", sys.executable)
    venv = scale_on_gpu.venv_folder
    (venv(is_cpu=True)).parent.mkdir(parents=True, exist_ok=True)
    venv(is_cpu=True).symlink_to(venv(is_cpu=False))
    (venv(is_cpu=True) / scale_on_gpu.DONE).write_text(scale_on_gpu.package(is_cpu=True))
    figures = Figures("scale")
    with engine() as asked:
        measure(home, 1, asked, figures, Deadline.after(300.0))
    found = {one.column: one.value for one in figures.found}
    assert not figures.failures and found["characters kept of a killed answer"] == len("Hello from")
    assert found["1 chat, tokens/s"]
    assert set(found) >= {"start, s", "start again, s", "found again, s", "first words, ms"}


def test_the_command_gets_the_packages_and_no_settings_of_benchmarks() -> None:
    text = script("/bin/py thon", {"PYTHONPATH": "/a b", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    assert text == "#!/bin/sh\nPYTHONPATH='/a b' exec '/bin/py thon' -m vllm.entrypoints.cli.main \"$@\"\n"
