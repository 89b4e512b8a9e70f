"""What was opened before somebody signed out: it ends by itself, and nothing more comes out of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from core.access import session_watch
from core.access.session_watch import SessionWatch


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_watch, "IDLE_S", 0.01)
    monkeypatch.setattr(session_watch, "BUSY_S", -1.0)


class Line:
    """A connection: what was sent on it, and what comes when the test says so."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.coming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.is_in = True

    async def send(self, message: Any) -> None:
        self.sent.append(message)


def test_a_socket_on_which_nothing_happens_is_closed() -> None:
    """It once stayed open, and went on receiving, until the browser's next message."""

    async def run() -> None:
        line = Line()
        receive = SessionWatch(lambda: line.is_in).receiving(line.coming.get, line.send)
        waiting = asyncio.ensure_future(receive())
        await line.coming.put({"type": "websocket.receive", "text": "one"})
        assert (await waiting)["text"] == "one"
        waiting = asyncio.ensure_future(receive())
        line.is_in = False
        assert (await waiting)["type"] == "websocket.disconnect"
        assert line.sent == [{"type": "websocket.close", "code": 1008}]
        assert (await receive())["type"] == "websocket.disconnect" and len(line.sent) == 1

    asyncio.run(asyncio.wait_for(run(), 30))


def test_no_message_goes_out_any_more() -> None:
    async def run() -> None:
        line = Line()
        send = SessionWatch(lambda: line.is_in).sending(line.send)
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "one"})
        line.is_in = False
        for _ in range(2):
            with pytest.raises(OSError, match="signed out"):
                await send({"type": "websocket.send", "text": "a secret"})
        await send({"type": "websocket.close", "code": 1000})
        assert [message.get("text", message.get("code")) for message in line.sent] == [None, "one", 1008]

    asyncio.run(run())


def test_a_download_is_cut_off() -> None:
    async def run() -> None:
        line = Line()
        send = SessionWatch(lambda: line.is_in).sending(line.send)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        line.is_in = False
        await send({"type": "http.response.body", "body": b"two", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        assert [message.get("body") for message in line.sent] == [None, b"one"]

    asyncio.run(run())


def test_whoever_stops_waiting_takes_no_message_away() -> None:
    async def run() -> None:
        line = Line()
        receive = SessionWatch(lambda: True).receiving(line.coming.get, line.send)
        waiting = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        await line.coming.put({"type": "websocket.receive", "text": "one"})
        assert (await receive())["text"] == "one"

    asyncio.run(asyncio.wait_for(run(), 30))
