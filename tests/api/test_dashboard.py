"""The API on the dashboard's own port: a process as people start it, with pages beside the API."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest
import uvicorn
from starlette.applications import Starlette

from core.access.keys import KeyStore
from core.server.uvicorn_tuning import SHUTDOWN_TIMEOUT_S, tune
from tests.support.api_server import MODEL
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.dashboard import dashboard

WAIT_S = 60.0
PARIS: list = [{"role": "user", "content": "words=12 wait=0.1"}]
FOREVER = {"messages": [{"role": "user", "content": "forever"}], "stream": True}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("api_dashboard")
    make_checkpoint(home / "models" / MODEL, Recipe(context_tokens=1024))
    return dict(os.environ) | {
        "LLAMADECK_MODELS": str(home / "models"),
        "LLAMADECK_DATA": str(home / "data"),
        "LLAMADECK_WORKER": "tests.support.fake_worker",
        "LLAMADECK_LOAD": MODEL,
    }


@pytest.fixture(scope="module")
def key(environment: dict[str, str]) -> str:
    return KeyStore(Path(environment["LLAMADECK_DATA"]) / "keys.json").make("test")


@pytest.fixture(scope="module")
def url(environment: dict[str, str], key: str) -> Iterator[str]:
    """A dashboard that others can reach: its pages ask for the password, its API for keys."""
    with dashboard(environment | {"LLAMADECK_PASSWORD": "correct horse"}, host="0.0.0.0") as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str, key: str) -> openai.OpenAI:
    # A load may still run: the client asks again, as it is told.
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=5, timeout=WAIT_S)


def test_the_openai_client_talks_to_the_dashboards_port(client: openai.OpenAI, url: str) -> None:
    done = client.chat.completions.create(model=MODEL, messages=PARIS)
    assert (done.choices[0].message.content or "").split() == ["one", "two", "three", "four", "five"] * 2 + [
        "one",
        "two",
    ]
    stream = client.chat.completions.create(model="Ada", messages=PARIS, stream=True)
    assert sum(bool(piece.choices[0].delta.content) for piece in stream) > 1
    headers = {"authorization": f"Bearer {client.api_key}", "accept": "text/html"}
    assert httpx2.get(url, headers=headers).status_code == 401, "a key opens no page"
    entered = httpx2.post(f"{url}/sign-in", data={"password": "correct horse"})
    assert "<title>Streamlit</title>" in httpx2.get(url, cookies=entered.cookies).text


def test_pieces_are_not_kept_back_to_be_compressed(url: str, key: str) -> None:
    """The dashboard compresses what it answers; an event is worth nothing later."""
    headers = {"authorization": f"Bearer {key}", "accept-encoding": "gzip"}
    with httpx2.stream("POST", f"{url}/v1/chat/completions", json=FOREVER, headers=headers, timeout=WAIT_S) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "content-encoding" not in response.headers
        lines = (line for line in response.iter_lines() if line)
        assert all(next(lines).startswith("data: {") for _ in range(20))


def test_without_a_key_nothing_is_said(url: str) -> None:
    """A proxy passed it on, so it may come from anywhere."""
    for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/anything"):
        response = httpx2.get(url + path, headers={"x-forwarded-for": "203.0.113.7"})
        assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
    assert httpx2.get(f"{url}/health").json() == {"status": "ok"}


def test_a_stream_does_not_keep_the_process_from_its_end(environment: dict[str, str]) -> None:
    """It went on until the client left: `dashboard` waits for the end of the process, and for its exit code."""
    with dashboard(environment) as url:
        deadline_s = time.monotonic() + WAIT_S
        while not httpx2.get(f"{url}/v1/models").json()["data"]:
            assert time.monotonic() < deadline_s, "the model was never loaded"
            time.sleep(0.1)  # Another process's state has no event to wait for.
        client = httpx2.Client(timeout=WAIT_S)
        stream = client.stream("POST", f"{url}/v1/chat/completions", json=FOREVER)
        lines = stream.__enter__().iter_lines()
        assert next(lines).startswith("data: ")
    *_, last, mark = [line for line in lines if line]
    client.close()
    assert "server_ending" in last and mark == "data: [DONE]", "it ends in words"


def test_what_the_web_server_is_told() -> None:
    """Connections inherit from the listening socket that small pieces go out at once."""

    async def serve() -> tuple[int, float | None]:
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(Starlette(), log_level="error"))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        await tune(server)
        nodelay = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        server.should_exit = True
        await serving
        return nodelay, server.config.timeout_graceful_shutdown

    nodelay, end_s = asyncio.run(serve())
    assert nodelay != 0 and end_s == SHUTDOWN_TIMEOUT_S
