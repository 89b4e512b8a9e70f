"""Open dashboards without browsers: websockets that do what an idle tab does.

A tab asks for the page once, then for each part of it as often as that part says, and answers nothing else.
"""

from __future__ import annotations

import asyncio

import websockets
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg


class OpenDashboard:
    """One tab that looks at Home. `num_runs` counts how often a page or a part of it was drawn to its end."""

    def __init__(self, url: str) -> None:
        self._address = url.replace("http", "ws", 1) + "/_stcore/stream"
        self._timers: dict[str, asyncio.Task[None]] = {}
        self.num_runs = 0
        self.problems: list[str] = []

    async def stay(self, closing: asyncio.Event) -> None:
        """Open the dashboard and keep it open until `closing`."""
        try:
            async with websockets.connect(self._address, max_size=None) as connection:
                await _rerun(connection)
                receiving = asyncio.create_task(self._receive(connection))
                await closing.wait()
                receiving.cancel()
        except (OSError, websockets.WebSocketException) as error:
            self.problems.append(f"{type(error).__name__}: {error}")
        finally:
            for timer in self._timers.values():
                timer.cancel()

    async def _receive(self, connection: websockets.ClientConnection) -> None:
        try:
            async for data in connection:
                self._take(ForwardMsg.FromString(data if isinstance(data, bytes) else data.encode()), connection)
        except Exception as error:  # A task's edge: whatever it was, the tab is dead, and that is what is asked here.
            self.problems.append(f"{type(error).__name__}: {error}")

    def _take(self, message: ForwardMsg, connection: websockets.ClientConnection) -> None:
        match message.WhichOneof("type"):
            case "auto_rerun":
                part = message.auto_rerun.fragment_id
                self._stop([part])
                self._timers[part] = asyncio.create_task(_repeat(connection, part, message.auto_rerun.interval))
            case "stop_auto_rerun":
                self._stop(list(message.stop_auto_rerun.fragment_ids))
            case "script_finished":
                self.num_runs += 1

    def _stop(self, parts: list[str]) -> None:
        for part in parts:
            if timer := self._timers.pop(part, None):
                timer.cancel()


async def _repeat(connection: websockets.ClientConnection, part: str, interval_s: float) -> None:
    while True:
        await asyncio.sleep(interval_s)
        await _rerun(connection, part)


async def _rerun(connection: websockets.ClientConnection, part: str = "") -> None:
    message = BackMsg()
    message.rerun_script.query_string = ""
    message.rerun_script.context_info.locale = "en-US"
    if part:
        message.rerun_script.fragment_id = part
        message.rerun_script.is_auto_rerun = True
    await connection.send(message.SerializeToString())
