"""The API against its own description: schemathesis makes requests of it, right and wrong ones, by the hundred."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from core.api import openapi
from core.api.dialects import description
from core.api.openapi import describe
from core.common.paths import ROOT
from tests.support.api_server import api_server, loaded_runner

LIMIT_S = 480


def test_no_name_of_a_schema_stands_for_two() -> None:
    described = set(describe()["components"]["schemas"])
    own = set(openapi._answers()) | set(description.schemas())
    requests = {name for name in described if name not in own}
    assert {"ChatRequest", "Message"} <= requests and not set(openapi._answers()) & set(description.schemas())


@pytest.mark.timeout(LIMIT_S + 60)
def test_every_answer_is_as_the_description_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LLAMADECK_FAKE_WORD_S", "0")
    config = ["--config-file", str(ROOT / "tests" / "api" / "schemathesis.toml")]
    with loaded_runner(tmp_path / "models") as runner, api_server(runner, tmp_path) as url:
        command = [sys.executable, "-m", "schemathesis.cli", *config, "run", f"{url}/openapi.json"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "19 selected / 19 total" in done.stdout, done.stdout[:2000]
