"""Tabs that come and go: 1,000 are opened and closed, and the dashboard's open files and memory are told.

Run as `python -m benchmarks.tabs [--tabs 1000] [--at-once 4] [--json]`. It starts a dashboard of its own without a
model, on loopback. A tab is a raw websocket that asks for a page, in turn for each of them, waits until it is drawn,
and goes. It fails (exit code 1) where open files or threads grew by more than 10, or where a tab saw no page.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import websockets
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from tests.support.dashboard import dashboard

PAGES = ("", "Download", "Load_Model", "Chat", "Characters", "GPU_Monitor", "Settings")
MAX_GROWTH = 10
DRAWN_S = 30.0
# Streamlit keeps a closed tab's session for two minutes, in case that it comes back.
KEPT_S = 120.0


async def open_and_close(url: str, page: str) -> bool:
    """Whether the page was drawn."""
    address = url.replace("http", "ws", 1) + "/_stcore/stream"
    message = BackMsg()
    message.rerun_script.query_string = ""
    message.rerun_script.page_name = page
    message.rerun_script.context_info.locale = "en-US"
    try:
        async with websockets.connect(address, max_size=None) as connection, asyncio.timeout(DRAWN_S):
            await connection.send(message.SerializeToString())
            async for data in connection:
                found = ForwardMsg.FromString(data if isinstance(data, bytes) else data.encode())
                if found.WhichOneof("type") == "script_finished":
                    return bool(found.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY)
    except (OSError, TimeoutError, websockets.WebSocketException):
        return False
    return False


async def come_and_go(url: str, tabs: int, at_once: int) -> int:
    """How many saw no page."""
    places = asyncio.Semaphore(at_once)

    async def one(number: int) -> bool:
        async with places:
            return await open_and_close(url, PAGES[number % len(PAGES)])

    return (await asyncio.gather(*map(one, range(tabs)))).count(False)


@contextmanager
def watched(pid: int) -> Iterator[dict[str, list[int]]]:
    """Open files, threads and MiB: before, and when the block is over."""
    figures: dict[str, list[int]] = {"files": [], "threads": [], "memory_mib": []}

    def look() -> None:
        status = Path(f"/proc/{pid}/status").read_text("utf-8")
        figures["files"].append(len(os.listdir(f"/proc/{pid}/fd")))
        figures["threads"].append(int(re.findall(r"Threads:\s+(\d+)", status)[0]))
        figures["memory_mib"].append(int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) // 1024)

    look()
    yield figures
    look()


def dashboard_on(url: str) -> int:
    """The process that was told this port."""
    port = url.rpartition(":")[2].encode()
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text("utf-8").split()
    return next(int(pid) for pid in children if port in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tabs", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    known = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        places = {f"LLAMADECK_{name}": str(Path(folder, name.lower())) for name in ("DATA", "MODELS", "CHARACTERS")}
        with dashboard(os.environ | places) as url:
            # What is used for the first time takes files and memory once.
            asyncio.run(come_and_go(url, 2 * len(PAGES), known.at_once))
            with watched(dashboard_on(url)) as figures:
                begin_s = time.monotonic()
                failed = asyncio.run(come_and_go(url, known.tabs, known.at_once))
                took_s = time.monotonic() - begin_s
                time.sleep(2)
            with watched(dashboard_on(url)) as later:
                time.sleep(KEPT_S + 5)
    for name, values in figures.items():
        values.append(later[name][1])
    result = {"tabs": known.tabs, "failed": failed, "seconds": round(took_s, 1), **figures}
    if known.json:
        print(json.dumps(result))
    else:
        print(f"{known.tabs} tabs in {took_s:.0f} s, {failed} without a page")
        for name, (before, after, kept) in figures.items():
            print(f"{name:11}{before:6} before,{after:6} after,{kept:6} when no closed tab is kept any more")
    grown = any(max(figures[name]) - figures[name][0] > MAX_GROWTH for name in ("files", "threads"))
    return 1 if failed or grown else 0


if __name__ == "__main__":
    sys.exit(main())
