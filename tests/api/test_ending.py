"""How what is being answered ends with the process: in words, never with a cut connection."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from core.common.paths import ROOT
from core.engine.answer import Answer
from core.engine.runner import Runner
from core.server.uvicorn_tuning import IdleConnections
from tests.support.api_server import api_server, error, raw

CHAT = "/v1/chat/completions"
FOREVER = {"messages": [{"role": "user", "content": "forever"}]}
WAIT_S = 60.0


class Ending(asyncio.Event):
    """Set from the test's thread, in the loop of the server."""

    loop: asyncio.AbstractEventLoop | None = None

    async def wait(self) -> bool:
        self.loop = asyncio.get_running_loop()
        return bool(await super().wait())

    def set_from_elsewhere(self) -> None:
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.set)


@pytest.fixture
def ending() -> Ending:
    return Ending()


@pytest.fixture
def url(api_home: Path, api_runner: Runner, ending: Ending) -> Iterator[str]:
    with api_server(api_runner, api_home, ending=ending) as url:
        yield url
    for answer in api_runner.running_answers:
        assert answer.wait(WAIT_S) and answer.reason == "cancelled"


def test_a_stream_ends_with_an_error_and_its_mark(url: str, ending: Ending) -> None:
    with httpx2.stream("POST", url + CHAT, json=FOREVER | {"stream": True}, timeout=WAIT_S) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        ending.set_from_elsewhere()
        *_, last, mark = [line for line in lines if line]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "server_ending"
    assert mark == "data: [DONE]"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", {"max_tokens": 500, "messages": FOREVER["messages"]}),
        ("/v1/responses", {"input": "forever"}),
        ("/api/chat", {"messages": FOREVER["messages"]}),
        ("/api/generate", {"prompt": "forever"}),
    ],
)
def test_streams_of_other_apis_end_in_their_own_words(
    url: str, ending: Ending, path: str, body: dict[str, Any]
) -> None:
    with httpx2.stream("POST", url + path, json=body | {"stream": True}, timeout=WAIT_S) as response:
        lines = response.iter_lines()
        next(lines)
        ending.set_from_elsewhere()
        *_, last = [line for line in lines if line]
    assert "The server is ending" in str(json.loads(last.removeprefix("data: "))["error"])


def test_an_answer_that_is_waited_for_is_an_error_with_a_status(url: str, ending: Ending, api_runner: Runner) -> None:
    got: list[httpx2.Response] = []
    asking = threading.Thread(target=lambda: got.append(httpx2.post(url + CHAT, json=FOREVER, timeout=WAIT_S)))
    asking.start()
    while not api_runner.running_answers:
        asking.join(0.01)
    assert api_runner.running_answers[0].wait_for_text(0, WAIT_S)
    ending.set_from_elsewhere()
    asking.join(WAIT_S)
    assert got[0].status_code == 503 and int(got[0].headers["retry-after"]) > 0
    assert error(got[0])["code"] == "server_ending"


def test_a_body_that_is_still_coming_is_answered(url: str, ending: Ending) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with raw(url, head + b'Content-Length: 100\r\n\r\n{"prompt": "') as connection:
        assert httpx2.get(f"{url}/v1/models").status_code == 200  # By now the server waits for the rest.
        ending.set_from_elsewhere()
        assert b"503" in connection.recv(65536).splitlines()[0]


def test_what_is_asked_meanwhile_is_refused_and_health_goes_on(url: str, ending: Ending) -> None:
    ending.set()
    refused = httpx2.post(url + CHAT, json=FOREVER)
    assert refused.status_code == 503 and error(refused)["code"] == "server_ending"
    assert httpx2.get(f"{url}/health").json() == {"status": "ok"}


class SlowToBegin:
    """The engine, in which a prompt takes until `go_on` is set."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.is_asked, self.go_on = threading.Event(), threading.Event()
        self.answers: list[Answer] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def generate(self, *asked: Any) -> Answer:
        self.is_asked.set()
        assert self.go_on.wait(WAIT_S)
        self.answers.append(self._runner.generate(*asked))
        return self.answers[-1]


def test_an_answer_that_begins_when_nobody_waits_any_more_is_stopped(api_home: Path, api_runner: Runner) -> None:
    """A request was cut off while its prompt was still being made: the answer ran to its end for nobody."""
    ending, engine = Ending(), SlowToBegin(api_runner)
    with api_server(engine, api_home, ending=ending) as url, ThreadPoolExecutor(1) as asking:
        asked = asking.submit(httpx2.post, url + CHAT, json=FOREVER, timeout=WAIT_S)
        assert engine.is_asked.wait(WAIT_S)
        ending.set_from_elsewhere()
        assert error(asked.result(WAIT_S))["code"] == "server_ending"
        engine.go_on.set()
        assert httpx2.get(f"{url}/v1/models").status_code == 503
        while not engine.answers:
            engine.go_on.wait(0.01)
        assert engine.answers[0].wait(WAIT_S) and engine.answers[0].reason == "cancelled"


class Transport:
    def __init__(self, is_closing: bool = False) -> None:
        self._is_closing, self.is_aborted = is_closing, False

    def is_closing(self) -> bool:
        return self._is_closing

    def abort(self) -> None:
        self.is_aborted = True


class Cycle:
    def __init__(self, response_complete: bool) -> None:
        self.response_complete = response_complete


class Connection:
    def __init__(self, cycle: Cycle | None = None, is_closing: bool = False) -> None:
        self.cycle, self.transport = cycle, Transport(is_closing)


class Websocket:
    def __init__(self) -> None:
        self.transport = Transport()


def test_a_connection_that_asks_for_nothing_twice_is_closed_and_no_other() -> None:
    silent, asked, answering = Connection(), Connection(Cycle(True)), Connection(Cycle(False))
    leaving, busy = Connection(Cycle(False), is_closing=True), Connection()
    socket = Websocket()
    connections = [silent, asked, answering, leaving, busy, socket]
    idle = IdleConnections()
    idle.close_old(connections)
    assert not any(one.transport.is_aborted for one in connections)
    # These two asked between the two looks; the second one's answer is finished again.
    busy.cycle, asked.cycle = Cycle(False), Cycle(True)
    idle.close_old(connections)
    assert [one.transport.is_aborted for one in connections] == [True, False, False, True, False, False]
    idle.close_old(connections)
    assert asked.transport.is_aborted and not busy.transport.is_aborted and not socket.transport.is_aborted


def test_as_many_files_may_be_open_as_the_system_lets() -> None:
    """In a process of its own: a limit that was raised stays."""
    script = (
        "import resource as r; from core.server.uvicorn_tuning import allow_connections;"
        "hard = r.getrlimit(r.RLIMIT_NOFILE)[1];"
        "r.setrlimit(r.RLIMIT_NOFILE, (256, min(hard, 4000))); allow_connections(); print(r.getrlimit(r.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S)
    assert done.stdout.strip() == "(4000, 4000)", done.stderr
