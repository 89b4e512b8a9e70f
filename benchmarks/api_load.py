"""The dashboard under load: 20 open dashboards, 8 API clients that stream and often leave, a person who clicks.

Run as `python -m benchmarks.api_load [--minutes 5] [--json]`. It starts a dashboard of its own with the starter model
and 8 chats at once, on loopback. The open dashboards are raw websockets that redraw their parts as a browser does; the
person is headless Chromium, whose switches of pages are timed. Then one key asks for all that it can, 80 at once, a
second one for one answer after another, and the person on the page Chat: how long these two wait. It fails (exit code
1) where anything was wrong that no client caused: an error, an answer lost or mixed up, memory that grew by over 10 %,
a page that took over 1 s, the second key refused or waiting as if it had no turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
from playwright.sync_api import Error, Page, Playwright, sync_playwright

from benchmarks.api_clients import Tally, ask_on
from benchmarks.api_shares import Crowd
from benchmarks.open_dashboards import OpenDashboard
from benchmarks.pages import CHROMIUM, FLAGS, LOAD_MS, PAGES, press, switch_ms, wait_for
from core.common.paths import ROOT
from core.starter import build as starter
from tests.support.dashboard import free_port

NUM_DASHBOARDS, NUM_CLIENTS = 20, 8
# The place of 8 in the slider of chats at once.
CHATS_STEPS = 5
MODEL = "starter"
PAUSE_MS, SETTLE_S, SHARE_S = 2000, 10.0, 120.0
# Of fewer a median says nothing.
MIN_ANSWERS = 5
FIRST_WORD = """() => {
    const messages = [...document.querySelectorAll('[data-testid="stChatMessage"]')].slice(1);
    const isWord = text => text.trim() && !/Waiting for its turn|Reading the question/.test(text);
    return messages.some(one => isWord(one.innerText));
}"""
MAX_PAGE_MS, MAX_GROWTH = 1000, 0.10
# Pages and libraries that are used for the first time take memory once.
WARM_UP_SHARE = 0.3

# Figures by name, and sentences for what was wrong.
Found = tuple[dict[str, object], list[str]]


class Load:
    """Everything that asks at once, in a thread with an event loop; `stop` waits for its end."""

    def __init__(self, url: str) -> None:
        self.tally = Tally()
        self.dashboards = [OpenDashboard(url) for _ in range(NUM_DASHBOARDS)]
        self._url = url
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    async def _run(self) -> None:
        clients = [ask_on(number, self._url, self.tally, self._closing) for number in range(NUM_CLIENTS)]
        await asyncio.gather(*clients, *(one.stay(self._closing) for one in self.dashboards))


@contextmanager
def dashboard(home: Path) -> Iterator[tuple[str, int]]:
    """A dashboard whose only model is the starter: its address, and the number of its process."""
    (home / "models").mkdir()
    (home / "models" / MODEL).symlink_to(starter.ensure_cached(lambda stage, fraction: None))
    environment = os.environ | {"LLAMADECK_MODELS": str(home / "models"), "LLAMADECK_DATA": str(home / "data")}
    port = free_port()
    command = [sys.executable, "-m", "ui.server.start", "--server.port", str(port), "--server.address", "127.0.0.1"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        yield wait_for(f"http://127.0.0.1:{port}"), process.pid
    finally:
        process.terminate()
        process.wait()


def load_model(page: Page) -> None:
    """As a person does it, for eight chats at once."""
    switch_ms(page, "Load model")
    slider = page.locator(f".st-key-gauge_chats_{MODEL}").get_by_role("slider")
    slider.focus()
    for _ in range(CHATS_STEPS):
        slider.press("ArrowRight")
    page.wait_for_timeout(PAUSE_MS)
    press(page, f"load_model_{MODEL}")
    page.get_by_text("Successfully loaded").wait_for(timeout=LOAD_MS)


def memory_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024


def watch(page: Page, pid: int, seconds: float) -> tuple[list[float], list[float]]:
    """Click from page to page: milliseconds of each switch, and MiB of the process after each."""
    took_ms: list[float] = []
    held_mib: list[float] = []
    names = list(PAGES)
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        took_ms.append(switch_ms(page, names[(len(took_ms) + 1) % len(names)]))
        held_mib.append(memory_mib(pid))
        page.wait_for_timeout(PAUSE_MS)
    return took_ms, held_mib


def figures(url: str) -> dict[str, float]:
    lines = httpx2.get(f"{url}/metrics").text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def settled(url: str) -> dict[str, float]:
    """The API's own figures, once nothing is answered any more."""
    end_s = time.monotonic() + SETTLE_S
    while True:
        found = figures(url)
        is_quiet = found["llamadeck_answers_running"] == found["llamadeck_answers_queued"] == 0
        if is_quiet or time.monotonic() > end_s:
            return found
        time.sleep(0.2)


def ask_first_s(page: Page) -> float:
    """Seconds from a question on the page Chat to the first word of its answer, in a chat of its own."""
    page.goto(f"{page.url.partition('/Chat')[0].rstrip('/')}/Chat?chat=new")
    field = page.get_by_test_id("stChatInputTextArea")
    field.fill("Say hello.")
    begin_s = time.monotonic()
    field.press("Enter")
    page.wait_for_function(FIRST_WORD, timeout=LOAD_MS)
    took_s = time.monotonic() - begin_s
    stop = page.get_by_role("button", name="Stop answering")
    if stop.is_visible():
        with suppress(Error):  # The answer ended in this moment.
            stop.click(timeout=PAUSE_MS)
    stop.wait_for(state="hidden", timeout=LOAD_MS)
    return took_s


def share(page: Page, url: str, home: Path, seconds: float) -> tuple[Crowd, list[float]]:
    """What the two keys saw, and how long the person waited for first words meanwhile."""
    page.goto(url)
    crowd = Crowd(url, home / "data")
    crowd.start()
    page.wait_for_timeout(SETTLE_S * 1000)
    crowd.begin_anew()
    waited_s = []
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        waited_s.append(ask_first_s(page))
    crowd.stop()
    return crowd, waited_s


def person(playwright: Playwright, url: str) -> Page:
    """The page of a person who loaded the model and has been to each page once."""
    page = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS).new_context(locale="en-US").new_page()
    page.goto(url)
    page.locator("h1").wait_for()
    load_model(page)
    for name in PAGES:
        switch_ms(page, name)
    return page


def run(seconds: float) -> Found:
    with tempfile.TemporaryDirectory() as home, dashboard(Path(home)) as (url, pid), sync_playwright() as playwright:
        page = person(playwright, url)
        load = Load(url)
        load.start()
        took_ms, held_mib = watch(page, pid, seconds)
        load.stop()
        counted = settled(url)
        crowd, waited_s = share(page, url, Path(home), min(seconds, SHARE_S))
    (figures, problems), (of_shares, more) = summary(load, took_ms, held_mib, counted), shares_summary(crowd, waited_s)
    return figures | of_shares, problems + more


def shares_summary(crowd: Crowd, waited_s: list[float]) -> Found:
    greedy, modest = crowd.greedy, crowd.modest
    problems = [f"the second key: {count} × status {one}" for one, count in modest.statuses.items() if one != 200]
    if not modest.first_s or not greedy.first_s:
        problems.append("a key got no answer at all")
    elif (
        len(modest.first_s) >= MIN_ANSWERS and statistics.median(modest.first_s) > statistics.median(greedy.first_s) / 4
    ):
        problems.append("the second key waited as if it had no turns")
    figures: dict[str, object] = {
        "greedy_answers": len(greedy.first_s),
        "greedy_refused": greedy.statuses[429],
        "greedy_first_text_median_s": round(statistics.median(greedy.first_s), 2) if greedy.first_s else None,
        "modest_answers": len(modest.first_s),
        "modest_first_text_median_s": round(statistics.median(modest.first_s), 2) if modest.first_s else None,
        "chat_answers": len(waited_s),
        "chat_first_word_median_s": round(statistics.median(waited_s), 2),
        "chat_first_word_max_s": round(max(waited_s), 2),
    }
    return figures, problems


def summary(load: Load, took_ms: list[float], held_mib: list[float], counted: dict[str, float]) -> Found:
    tally, answered = load.tally, 'llamadeck_api_requests_total{route="/v1/completions",status="%d"}'
    warm = held_mib[int(len(held_mib) * WARM_UP_SHARE) :]
    part = max(1, len(warm) // 3)
    before, after = statistics.mean(warm[:part]), statistics.mean(warm[-part:])
    growth = after / before - 1
    num_known = counted.get(answered % 200, 0) + counted.get(answered % 499, 0)
    problems = [f"{count} × {what}" for what, count in tally.problems.items()]
    problems += [f"an open dashboard: {what}" for one in load.dashboards for what in one.problems]
    problems += ["an open dashboard was never drawn" for one in load.dashboards if one.num_runs < 2]
    if num_known != tally.sent or tally.finished + tally.left + tally.problems.total() != tally.sent:
        problems.append(f"of {tally.sent} requests the server knows {num_known:.0f}")
    if counted["llamadeck_answers_running"] or counted["llamadeck_answers_queued"]:
        problems.append("answers were left behind in the engine")
    if growth > MAX_GROWTH:
        problems.append(f"memory grew by {growth:.1%}")
    if max(took_ms) > MAX_PAGE_MS:
        problems.append(f"{sum(one > MAX_PAGE_MS for one in took_ms)} pages took over {MAX_PAGE_MS} ms")
    figures: dict[str, object] = {
        "requests": tally.sent,
        "finished": tally.finished,
        "left": tally.left,
        "tokens": tally.tokens,
        "first_text_median_s": round(statistics.median(tally.first_s), 2) if tally.first_s else None,
        "redrawn_parts": sum(one.num_runs for one in load.dashboards),
        "page_median_ms": round(statistics.median(took_ms)),
        "page_max_ms": round(max(took_ms)),
        "pages": len(took_ms),
        "memory_before_mib": round(before),
        "memory_after_mib": round(after),
    }
    return figures, problems


def tell(found: Found, as_json: bool, **facts: object) -> int:
    """Print figures and problems; the exit code: 1 where there are problems."""
    figures, problems = found
    if as_json:
        print(json.dumps({"cores": os.cpu_count(), **facts, **figures, "problems": problems}))
    else:
        for name, value in {**figures, "problems": problems}.items():
            print(f"{name:<20} {value}")
    return 1 if problems else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    return tell(run(arguments.minutes * 60), arguments.json, minutes=arguments.minutes)


if __name__ == "__main__":
    sys.exit(main())
