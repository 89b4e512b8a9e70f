"""A key that is revoked while its answer is being written."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import pytest

from core.access.keys import KeyStore
from core.api import http_call as call
from core.engine.runner import Runner
from tests.support.api_server import api_server

FOREVER = {"messages": [{"role": "user", "content": "forever wait=0.01"}], "stream": True}


def test_a_stream_ends_with_its_key(
    api_home: Path, api_runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It once went on to its end, however long that took: what was open before stayed open."""
    monkeypatch.setattr(call, "RECHECK_S", 0.05)
    keys = KeyStore(tmp_path / "keys.json")
    headers = {"authorization": f"Bearer {keys.make('notebook')}"}
    with api_server(api_runner, tmp_path, needs_key=lambda: True) as url:
        with httpx2.stream("POST", f"{url}/v1/chat/completions", json=FOREVER, headers=headers, timeout=60) as response:
            events = (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))
            for _ in range(5):
                assert "error" not in json.loads(next(events))
            keys.revoke(keys.keys()[0].id)
            last = list(events)[-1]
        assert json.loads(last)["error"]["code"] == "invalid_api_key"
        for answer in api_runner.running_answers:
            assert answer.wait(30)
