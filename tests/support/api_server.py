"""The API on a port of its own, in this process, and the engine that answers it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from starlette.applications import Starlette

from core.access.keys import KeyStore
from core.api.routes import make_routes
from core.engine.interface import Engine
from core.engine.runner import Runner
from core.personas.store import Characters
from tests.support.chat_templates import OWN_LLAMA2
from tests.support.checkpoints import Recipe, make_checkpoint

LOAD_S = 240.0
# Its name says that it was taught to chat: Llama-2's form is used, in which the stand-in worker finds the question.
MODEL = "tiny-chat"


@contextmanager
def api_server(
    engine: Engine, folder: Path, needs_key: Callable[[], bool] = lambda: False, **limits: Any
) -> Iterator[str]:
    """The server's address. `folder` is where its keys lie; characters are those that ship."""
    routes = make_routes(engine, Characters(), KeyStore(folder / "keys.json"), needs_key, **limits)
    listening = socket.create_server(("127.0.0.1", 0))
    # As core/server/uvicorn_tuning.py does for the dashboard's: else each answer takes 40 ms more.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(Starlette(routes=routes), log_level="error", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), name="api-server")
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


@contextmanager
def loaded_runner(models: Path, worker: str = "tests.support.fake_worker", num_slots: int = 1) -> Iterator[Runner]:
    """A runner that has loaded a tiny model below `models`, which LLAMADECK_MODELS has to name."""
    if not (models / MODEL).exists():
        make_checkpoint(models / MODEL, Recipe(context_tokens=1024))
        (models / MODEL / "chat_template.jinja").write_text(OWN_LLAMA2, "utf-8")
    runner = Runner(worker)
    runner.load(models / MODEL, num_slots=num_slots)
    assert runner.wait_while_loading(LOAD_S).phase == "ready", runner.state
    yield runner
    runner.unload()


def error(response: httpx2.Response) -> dict[str, Any]:
    """The error in a response, in OpenAI's shape and nothing else."""
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert len(body["error"]["message"]) > 10
    return dict(body["error"])


def raw(url: str, sent: bytes) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(sent)
    return connection


def received(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    parts = b""
    try:
        while part := connection.recv(65536):
            parts += part
    except ConnectionResetError:
        pass
    return parts
