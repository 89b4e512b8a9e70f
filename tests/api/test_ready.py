"""What tells a load balancer or a supervisor that the engine answers, and stays up itself when it does not."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from core.engine import process
from core.engine.runner import Runner
from core.engine.sampling_params import Sampling
from core.worker.heartbeat import BEAT_S
from tests.support.api_server import api_server, loaded_runner

WAIT_S = 60.0


def until(holds: Callable[[], object]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end_s
        threading.Event().wait(0.02)


def test_ready_says_whether_the_engine_answers_and_health_that_the_server_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path))
    monkeypatch.setattr(process, "SILENT_S", 3 * BEAT_S)
    with loaded_runner(tmp_path) as runner, api_server(runner, tmp_path) as url:

        def ready() -> tuple[int, str]:
            found = httpx2.get(f"{url}/ready")
            assert (found.json()["silent_s"] > 0) is (found.json()["status"] == "silent")
            return found.status_code, found.json()["status"]

        assert ready() == (200, "ready")
        assert runner.worker_pid is not None
        os.kill(runner.worker_pid, signal.SIGSTOP)
        for _ in range(20):
            runner.generate("hello " * 20_000, Sampling())
        until(lambda: ready() == (503, "silent"))
        assert httpx2.get(f"{url}/health").json() == {"status": "ok"}
        assert "llamadeck_answers_queued 20" in httpx2.get(f"{url}/metrics").text
        os.kill(runner.worker_pid, signal.SIGCONT)
        until(lambda: ready() == (200, "ready"))
        for answer in runner.running_answers:
            answer.cancel()
        runner.unload()
        assert ready() == (503, "empty")


@pytest.mark.parametrize(("model", "status"), [("not there", "failed"), ("tiny-chat", "loading")])
def test_a_load_that_goes_on_or_failed_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, status: str
) -> None:
    monkeypatch.setenv("LLAMADECK_FAKE_LOAD_S", "600" if status == "loading" else "0.01")
    runner = Runner("tests.support.fake_worker")
    runner.load(tmp_path / model)
    until(lambda: runner.state.phase == status)
    with api_server(runner, tmp_path) as url:
        found = httpx2.get(f"{url}/ready")
        assert (found.status_code, found.json()) == (503, {"status": status, "silent_s": 0.0})
    runner.unload()


def test_ready_needs_no_key_and_names_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path))
    with loaded_runner(tmp_path) as runner, api_server(runner, tmp_path, lambda: True) as url:
        assert httpx2.get(f"{url}/ready").text == '{"status":"ready","silent_s":0.0}'
        assert httpx2.head(f"{url}/ready").status_code == 200
        assert httpx2.post(f"{url}/ready").status_code == 405
        assert httpx2.get(f"{url}/metrics").status_code == 401
